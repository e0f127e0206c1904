// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The map of the heap's addresses at one moment. Cells run from left to right
// and from top to bottom like text; where addresses are skipped because nothing
// ever lived there, a new paragraph starts. Zooming shows fewer rows of it,
// with larger cells.

const MAP_GUTTER = 104;

class HeapMap {
  constructor(report, state) {
    this.report = report;
    this.state = state;
    this.cells = new CellStates(report);
    this.colors = new MapColors(report);
    this.view = [0, this.cells.count];
    this.canvas = byId('map-canvas');
    this.image = document.createElement('canvas');
    this.outline = element('div', {class: 'outline', hidden: true});
    byId('map-box').append(this.outline);
    this.modes = segmentedControl(
        byId('map-mode'), 'Colours', MAP_MODES,
        (mode) => state.set({mode}));
    this.drawSoon = onceAFrame(() => this.draw());
    state.on(['step', 'mode'], this.drawSoon);
    new ResizeObserver(this.drawSoon).observe(this.canvas);
    onThemeChange(() => {
      this.colors.load();
      this.drawSoon();
    });
    this.listen();
    this.draw();
  }

  listen() {
    const {canvas} = this;
    canvas.addEventListener('mousemove', (event) => {
      this.mouse = event;
      this.hover();
    });
    canvas.addEventListener('mouseleave', () => {
      this.mouse = null;
      this.hover();
    });
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      const cell = this.cellAt(event.offsetX, event.offsetY);
      this.zoom(event.deltaY > 0 ? 1.5 : 1 / 1.5,
                cell === null ? (this.view[0] + this.view[1]) / 2 : cell);
    }, {passive: false});
    canvas.addEventListener('mousedown', (event) => this.pan(event));
    canvas.addEventListener('keydown', (event) => {
      const middle = (this.view[0] + this.view[1]) / 2;
      const rows = this.layout ? this.layout.columns * 4 : 1;
      const actions = {
        '+': () => this.zoom(1 / 1.5, middle),
        '-': () => this.zoom(1.5, middle),
        '0': () => this.show(0, this.cells.count),
        ArrowUp: () => this.show(this.view[0] - rows, this.view[1] - rows),
        ArrowDown: () => this.show(this.view[0] + rows, this.view[1] + rows),
      };
      if (actions[event.key]) {
        event.preventDefault();
        actions[event.key]();
      }
    });
    const middle = () => (this.view[0] + this.view[1]) / 2;
    byId('map-in').addEventListener(
        'click', () => this.zoom(1 / 1.5, middle()));
    byId('map-out').addEventListener('click', () => this.zoom(1.5, middle()));
    byId('map-fit').addEventListener(
        'click', () => this.show(0, this.cells.count));
  }

  // Keeps `cell` where it is.
  zoom(factor, cell) {
    const [from, to] = this.view;
    this.show(cell - (cell - from) * factor, cell + (to - cell) * factor);
  }

  pan(event) {
    const [from, to] = this.view;
    if (event.button !== 0 || !this.layout || to - from >= this.cells.count) {
      return;
    }
    const {columns, tall} = this.layout;
    const move = (moved) => {
      const rows = Math.round((event.clientY - moved.clientY) / tall);
      this.show(from + rows * columns, to + rows * columns);
    };
    const stop = () => {
      removeEventListener('mousemove', move);
      removeEventListener('mouseup', stop);
    };
    addEventListener('mousemove', move);
    addEventListener('mouseup', stop);
  }

  show(from, to) {
    const count = this.cells.count;
    const width = Math.min(count, Math.max(128, Math.round(to - from)));
    const start = Math.min(Math.max(0, Math.round(from)), count - width);
    this.view = [start, start + width];
    this.drawSoon();
  }

  // Which cells go where: the largest cells with which all of the view fits.
  computeLayout(width, height) {
    const [from, to] = this.view;
    const parts = [];
    for (const segment of this.report.segments) {
      const first = Math.max(from, segment.first);
      const end = Math.min(to, segment.first + segment.cells);
      if (end > first) {
        parts.push({segment, first, end});
      }
    }
    // Up to 0.3 of the height for gaps, 0.4 where they would be hardly seen.
    const share = (part) =>
        Math.floor(height * part / Math.max(parts.length, 1));
    const gap = Math.min(15, Math.max(share(0.3), Math.min(2, share(0.4))));
    const room = Math.max(32, width - MAP_GUTTER);
    let best = null;
    for (let columns = 16; columns <= room; columns += 16) {
      let rows = 0;
      for (const part of parts) {
        rows += Math.ceil((part.end - part.first) / columns);
      }
      const wide = Math.min(24, Math.floor(room / columns));
      const tall = Math.min(
          24, 2 * wide, Math.floor((height - gap * (parts.length - 1)) / rows));
      // As large as can be, and rather square than not.
      const score = tall < 1 || wide > 2 * tall
          ? 0 : wide * tall / (1 + Math.abs(Math.log2(wide / tall)) / 4);
      if (score > 0 && (best === null || score >= best.score)) {
        best = {columns, wide, tall, gap, parts, score};
      }
    }
    return best ||
        {columns: room - room % 16, wide: 1, tall: 1, gap, parts};
  }

  placeParts(layout) {
    let y = 0;
    let row = 0;
    for (const part of layout.parts) {
      part.y = y;
      part.row = row;
      part.rows = Math.ceil((part.end - part.first) / layout.columns);
      row += part.rows;
      y += part.rows * layout.tall + layout.gap;
    }
    layout.rows = row;
  }

  draw() {
    const {context, width, height} = prepareCanvas(this.canvas);
    if (width === 0 || this.cells.count === 0) {
      this.showMoment();
      return;
    }
    this.layout = this.computeLayout(width, height);
    this.placeParts(this.layout);
    const step = this.state.get('step');
    this.current = this.cells.at(step);
    this.paintImage(step);
    const {columns, wide, tall, parts} = this.layout;
    context.imageSmoothingEnabled = false;
    for (const part of parts) {
      context.drawImage(
          this.image, 0, part.row, columns, part.rows,
          MAP_GUTTER, part.y, columns * wide, part.rows * tall);
    }
    if (Math.min(wide, tall) >= 5) {
      this.drawGrid(context);
    }
    this.drawAddresses(context, height);
    this.showMoment();
    this.hover();
  }

  // A pixel a cell, to be drawn enlarged.
  paintImage(step) {
    const {columns, rows, parts} = this.layout;
    const mode = this.state.get('mode');
    this.image.width = columns;
    this.image.height = Math.max(rows, 1);
    const context = this.image.getContext('2d');
    const image = context.createImageData(columns, Math.max(rows, 1));
    const pixels = new Uint32Array(image.data.buffer);
    const paint = this.colors.painter(mode, this.current, step);
    const {owner, blocks} = this.current;
    const used = new Set();
    for (const part of parts) {
      let at = part.row * columns;
      for (let cell = part.first; cell < part.end; ++cell) {
        pixels[at++] = paint(cell);
        if (blocks[cell] > 0) {
          used.add(owner[cell]);
        }
      }
    }
    context.putImageData(image, 0, 0);
    this.showLegend(mode, used);
  }

  showLegend(mode, used) {
    const {owners} = this.report.head;
    const indices = new Set();
    for (const owner of used) {
      const unpacked = CellStates.unpackOwner(owner, owners);
      if (unpacked && mode in unpacked) {
        indices.add(unpacked[mode]);
      }
    }
    const key = `${mode} ${[...indices].sort()} ${this.colors.free}`;
    if (key !== this.legendKey) {
      this.legendKey = key;
      byId('map-legend').replaceChildren(...this.colors.legend(mode, indices));
    }
  }

  drawGrid(context) {
    const {columns, wide, tall, parts} = this.layout;
    context.fillStyle = themeColor('card');
    for (const part of parts) {
      const height = part.rows * tall;
      for (let column = 1; column <= columns; ++column) {
        context.fillRect(MAP_GUTTER + column * wide - 1, part.y, 1, height);
      }
      for (let row = 1; row <= part.rows; ++row) {
        context.fillRect(
            MAP_GUTTER, part.y + row * tall - 1, columns * wide, 1);
      }
    }
  }

  drawAddresses(context, height) {
    const {columns, tall, gap, parts} = this.layout;
    context.font = '10.5px ui-monospace, "DejaVu Sans Mono", monospace';
    context.textBaseline = 'top';
    context.fillStyle = themeColor('muted');
    const rowsApart = Math.max(1, Math.ceil(56 / tall));
    let free = -Infinity;
    parts.forEach((part, i) => {
      for (let row = 0; row < part.rows; row += rowsApart) {
        const y = part.y + row * tall;
        if (y >= free && y + 11 <= height) {
          const address = this.addressOf(part.first + row * columns);
          context.fillText(formatAddress(address), 0, y);
          free = y + 12;
        }
      }
      if (i > 0 && gap >= 12) {
        const skipped = part.segment.start - this.endOf(parts[i - 1].segment);
        context.fillText(
            `⋮ ${formatBytes(Number(skipped))} without blocks`, MAP_GUTTER,
            part.y - gap + 2);
      }
    });
  }

  segmentOf(cell) {
    return this.report.segments.find(
        (segment) => cell < segment.first + segment.cells);
  }

  addressOf(cell) {
    const segment = this.segmentOf(cell);
    return segment.start +
        BigInt(cell - segment.first) * BigInt(this.report.cellBytes);
  }

  endOf(segment) {
    return segment.start +
        BigInt(segment.cells) * BigInt(this.report.cellBytes);
  }

  // The cell at a point of the canvas, or null.
  cellAt(x, y) {
    if (!this.layout || x < MAP_GUTTER) {
      return null;
    }
    const {columns, wide, tall, parts} = this.layout;
    const column = Math.floor((x - MAP_GUTTER) / wide);
    const part = parts.find((p) => y >= p.y && y < p.y + p.rows * tall);
    if (!part || column >= columns) {
      return null;
    }
    const cell =
        part.first + Math.floor((y - part.y) / tall) * columns + column;
    return cell < part.end ? cell : null;
  }

  hover() {
    const cell = this.mouse
        ? this.cellAt(this.mouse.offsetX, this.mouse.offsetY) : null;
    this.outline.hidden = cell === null;
    if (cell === null) {
      tooltip.hide();
      return;
    }
    const {columns, wide, tall, parts} = this.layout;
    const part = parts.find((p) => cell < p.end);
    const at = cell - part.first;
    const {style} = this.outline;
    style.left = `${MAP_GUTTER + at % columns * wide}px`;
    style.top = `${part.y + Math.floor(at / columns) * tall}px`;
    style.width = `${wide}px`;
    style.height = `${tall}px`;
    tooltip.show(this.mouse.clientX, this.mouse.clientY, this.describe(cell));
  }

  describe(cell) {
    const {cellBytes, totals, frames, cells, head} = this.report;
    const {bytes, blocks, mapped, owner, since} = this.current;
    const start = this.addressOf(cell);
    const lines = [
      element('div', {class: 'mono'},
              `${formatAddress(start)} – ${
                  formatAddress(start + BigInt(cellBytes))}`),
      `${formatBytes(bytes[cell])} live of ${formatBytes(cellBytes)} (${
          formatPercent(bytes[cell], cellBytes)}), ${
          formatCount(blocks[cell])} ${blocks[cell] === 1 ? 'block' : 'blocks'}`,
    ];
    if (totals.maps > 0) {
      lines.push(mapped[cell] >= cellBytes ? 'mapped'
          : mapped[cell] > 0 ? `${formatBytes(mapped[cell])} mapped`
                             : 'not mapped');
    }
    const unpacked = CellStates.unpackOwner(owner[cell], head.owners);
    if (blocks[cell] > 0 && unpacked) {
      lines.push(`Mostly: ${this.colors.ownerName('site', unpacked.site)}`);
      lines.push(`Thread ${
          this.colors.ownerName('thread', unpacked.thread)}, blocks of ${
          this.colors.ownerName('size', unpacked.size)}`);
      lines.push(`Not empty since ${formatMoment(
          frames.time[cells.frames[since[cell]]], totals.durationNs)}`);
    }
    return lines;
  }

  showMoment() {
    const frame = this.report.cells.frames[this.state.get('step')];
    const time = formatMoment(
        this.report.frames.time[frame], this.report.totals.durationNs);
    byId('map-moment').textContent =
        `at ${time}, ${formatBytes(this.report.cellBytes)} a cell`;
    this.modes.show(this.state.get('mode'));
  }
}
