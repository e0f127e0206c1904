// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The flame graph, hanging from the top: a box is a function, as wide as what
// it and all below it weigh. A click makes a box as wide as the graph; Back,
// Escape or a box above it undo that. With the keyboard, arrows move from box
// to box and Enter clicks.

const FLAME_ROW = 18;
const FLAME_HUES = [212, 30, 150, 275, 48, 330, 185, 100, 245, 8];

class Flame {
  constructor(report, state, measures) {
    this.report = report;
    this.state = state;
    this.measures = measures;
    this.trees = new Map();
    this.focusPath = [];  // What was zoomed to, the last one last.
    this.canvas = byId('flame-canvas');
    this.turns = segmentedControl(
        byId('turn'), 'Direction',
        [['callers', 'From main down', 'Callers on top'],
         ['sites', 'From sites up', 'Allocation sites on top']],
        (turn) => state.set({turn}));
    byId('flame-back').addEventListener('click', () => this.back());
    this.drawSoon = onceAFrame(() => this.draw());
    state.on(['turn'], () => {
      this.focusPath = [];
      this.selected = null;
    });
    state.on(['range', 'metric', 'turn', 'search'], this.drawSoon);
    state.on(['step'], () => {
      if (state.get('metric') === 'now') {
        this.drawSoon();
      }
    });
    new ResizeObserver(this.drawSoon).observe(byId('flame-box'));
    onThemeChange(this.drawSoon);
    this.listen();
    this.draw();
  }

  listen() {
    const {canvas} = this;
    canvas.addEventListener('mousemove', (event) => this.hover(event));
    canvas.addEventListener('mouseleave', () => {
      tooltip.hide();
      this.hovered = null;
      this.drawSoon();
    });
    canvas.addEventListener('click', (event) => {
      const box = this.boxAt(event.offsetX, event.offsetY);
      if (box) {
        this.zoomTo(box.node);
      }
    });
    canvas.addEventListener('keydown', (event) => this.key(event));
  }

  tree() {
    const turn = this.state.get('turn');
    if (!this.trees.has(turn)) {
      this.trees.set(turn, new FlameTree(this.report, turn));
    }
    return this.trees.get(turn);
  }

  focus() {
    return this.focusPath[this.focusPath.length - 1] || this.tree().nodes[0];
  }

  zoomTo(node) {
    if (node !== this.focus()) {
      this.focusPath.push(node);
      this.selected = node;
      this.draw();
    }
  }

  back() {
    this.focusPath.pop();
    this.draw();
  }

  // The boxes that are wide enough to be seen.
  layout(width) {
    const boxes = [];
    const focus = this.focus();
    const above = [];
    for (let node = focus.parent; node; node = node.parent) {
      above.unshift(node);
    }
    above.forEach((node, row) => boxes.push({node, x: 0, width, row}));
    const place = (node, x, boxWidth, row) => {
      boxes.push({node, x, width: boxWidth, row});
      let at = x;
      for (const child of node.children) {
        const childWidth = node.value > 0
            ? child.value / node.value * boxWidth : 0;
        if (childWidth < 0.6) {
          break;  // Children come with the widest first.
        }
        place(child, at, childWidth, row + 1);
        at += childWidth;
      }
    };
    place(focus, 0, width, above.length);
    return boxes;
  }

  draw() {
    const {state} = this;
    const tree = this.tree();
    const frame = this.report.cells.frames[state.get('step')];
    tree.setValues(
        this.measures.bySlot(state.get('metric'), state.get('range'), frame));
    this.covered = tree.search(state.get('search'));
    this.boxes = this.layout(this.canvas.clientWidth);
    const rows = this.boxes.reduce((most, box) => Math.max(most, box.row), 0);
    this.canvas.style.height =
        `${Math.max((rows + 1) * FLAME_ROW, byId('flame-box').clientHeight - 4)}px`;
    const {context} = prepareCanvas(this.canvas);
    context.font = '11.5px system-ui, sans-serif';
    context.textBaseline = 'middle';
    const searching = state.get('search').trim() !== '';
    for (const box of this.boxes) {
      this.drawBox(context, box, searching);
    }
    this.showPath();
    this.turns.show(state.get('turn'));
  }

  drawBox(context, {node, x, width, row}, searching) {
    const y = row * FLAME_ROW;
    const isAbove = row < this.focus().depth;
    const color = this.colorOf(node);
    context.globalAlpha = searching && !node.found ? 0.3 : isAbove ? 0.55 : 1;
    context.fillStyle = node.found ? themeColor('found') : color;
    context.fillRect(x, y, Math.max(width - 1, 0.5), FLAME_ROW - 1);
    context.globalAlpha = 1;
    if (node === this.hovered || node === this.selected) {
      context.strokeStyle = themeColor('text');
      context.strokeRect(x + 0.5, y + 0.5, Math.max(width - 2, 1), FLAME_ROW - 2);
    }
    if (width > 28) {
      context.fillStyle = themeColor('flame-text');
      context.fillText(
          fitText(context, node.place.name, width - 8), x + 4,
          y + FLAME_ROW / 2);
    }
  }

  // Modules have hues, functions shades.
  colorOf(node) {
    const {place} = node;
    if (place.kind !== 'address') {
      return themeColor('flame-other');
    }
    const path = place.module ? place.module.path : '';
    const hues = this.hues || (this.hues = new Map());
    if (!hues.has(path)) {
      hues.set(path, FLAME_HUES[hues.size % FLAME_HUES.length]);
    }
    const shade = hashText(place.name) % 5;
    const [saturation, lightness] =
        themeColor('flame-shade').split(/\s+/).map(Number);
    return `hsl(${hues.get(path)} ${saturation}% ${
        lightness + shade * 2.2}%)`;
  }

  showPath() {
    const {state} = this;
    const focus = this.focus();
    const root = this.tree().nodes[0];
    const metric = state.get('metric');
    const parts = [`${formatMeasure(metric, focus.value)} ${
        MEASURES[metric].label.toLowerCase()}`];
    if (focus !== root) {
      parts.push(`in ${focus.place.name}`);
    }
    if (state.get('search').trim() !== '') {
      parts.push(`${formatPercent(this.covered, root.value)} found`);
    }
    byId('flame-path').textContent = parts.join(', ');
    byId('flame-back').disabled = this.focusPath.length === 0;
  }

  boxAt(x, y) {
    const row = Math.floor(y / FLAME_ROW);
    return (this.boxes || []).find(
        (box) => box.row === row && x >= box.x && x < box.x + box.width);
  }

  hover(event) {
    const box = this.boxAt(event.offsetX, event.offsetY);
    const node = box ? box.node : null;
    if (node !== this.hovered) {
      this.hovered = node;
      this.drawSoon();
    }
    if (!node) {
      tooltip.hide();
      return;
    }
    const metric = this.state.get('metric');
    const root = this.tree().nodes[0];
    tooltip.show(event.clientX, event.clientY, [
      element('b', null, node.place.name),
      element('div', {class: 'place'}, node.place.where),
      `${formatMeasure(metric, node.value)} ${
          MEASURES[metric].label.toLowerCase()}, ${
          formatPercent(node.value, root.value)} of all`,
      `${formatMeasure(metric, node.self)} of it by itself`,
    ]);
  }

  key(event) {
    const at = this.selected || this.focus();
    const siblings = at.parent ? at.parent.children : [at];
    const index = siblings.indexOf(at);
    const moves = {
      ArrowDown: () => at.children[0],
      ArrowUp: () => at.parent,
      ArrowLeft: () => siblings[index - 1],
      ArrowRight: () => siblings[index + 1],
    };
    if (event.key === 'Enter') {
      this.zoomTo(at);
    } else if (event.key === 'Escape' || event.key === 'Backspace') {
      this.back();
    } else if (moves[event.key]) {
      const next = moves[event.key]();
      if (next && next.value > 0) {
        this.selected = next;
        this.canvas.setAttribute('aria-label', `${next.place.name}, ${
            formatMeasure(this.state.get('metric'), next.value)}`);
        this.draw();
      }
    } else {
      return;
    }
    event.preventDefault();
  }
}

function hashText(text) {
  let hash = 0;
  for (let i = 0; i < text.length; ++i) {
    hash = (hash * 31 + text.charCodeAt(i)) >>> 0;
  }
  return hash;
}

// As much of a text as fits.
function fitText(context, text, width) {
  if (context.measureText(text).width <= width) {
    return text;
  }
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${text.slice(0, middle)}…`).width <= width) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low > 0 ? `${text.slice(0, low)}…` : '';
}
