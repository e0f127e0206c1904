// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The charts over time, drawn by uPlot one above the other with the same x
// axis. A click chooses the moment that the map shows, dragging a range, the
// wheel zooms; the line of the moment can be dragged too.

class Charts {
  constructor(report, state, measures) {
    this.report = report;
    this.state = state;
    this.measures = measures;
    this.hovered = null;
    this.specs = [
      {id: 'memory', height: 230, series: memorySeries(report),
       hidden: new Set(isResidentElsewhere(report) ? ['resident'] : []),
       ticks: formatBytes},
      {id: 'fragmentation', height: 110, series: fragmentationSeries(report),
       ticks: (value) => `${value}\u00a0%`, range: [0, 100]},
      {id: 'activity', height: 96, series: activitySeries(report),
       ticks: (value) => formatShortCount(value)},
    ];
    this.build();
    state.on(['axis'], () => this.build());
    state.on(['step'], () => {
      this.specs.forEach(({plot}) => this.placePlayhead(plot));
      this.showLegends();
    });
    state.on(['range'], () => {
      this.showRange();
      this.redraw();
    });
    byId('zoom-out').addEventListener('click', () => this.zoomTo(null));
    byId('zoom-range').addEventListener('click', () => this.zoomToRange());
    byId('clear-range').addEventListener(
        'click', () => state.set({range: null}));
    new ResizeObserver(onceAFrame(() => this.resize()))
        .observe(byId('timeline'));
    onThemeChange(() => this.build());
  }

  build() {
    const {frames} = this.report;
    const isTime = this.state.get('axis') === 'time';
    this.x = isTime ? frames.time : frames.events;
    this.end = this.x[this.x.length - 1] || 1;
    this.zoom = null;
    for (const spec of this.specs) {
      spec.hidden = spec.hidden || new Set();
      if (spec.plot) {
        spec.plot.destroy();
      }
      spec.plot = this.plot(spec);
      this.buildLegend(spec);
    }
    this.showLegends();
    this.showRange();
    this.showZoom();
  }

  plot(spec) {
    const parent = byId(`${spec.id}-chart`);
    const options = {
      width: parent.clientWidth,
      height: spec.height,
      legend: {show: false},
      padding: [6, 24, 0, 0],
      scales: {
        x: {time: false, range: () => this.zoom || [0, this.end]},
        y: spec.range ? {range: spec.range}
                      : {range: (plot, min, max) => [0, (max || 1) * 1.06]},
      },
      axes: [this.xAxis(), this.yAxis(spec)],
      series: [{}, ...spec.series.map(
          (series) => this.seriesOptions(spec, series))],
      cursor: {
        sync: {key: 'heap'},
        drag: {x: true, y: false, setScale: false, dist: 4},
        points: {size: 6},
        bind: {
          mousedown: (plot, target, handle) => (event) =>
              this.startDrag(plot, event, handle),
          dblclick: () => () => this.zoomTo(null),
        },
      },
      hooks: {
        setSelect: [(plot) => this.selected(plot)],
        setCursor: [(plot) => this.hover(plot.cursor.idx)],
        drawClear: [(plot) => this.drawRange(plot)],
        init: [(plot) => this.prepareOverlay(plot)],
        draw: [(plot) => this.placePlayhead(plot)],
      },
    };
    return new uPlot(
        options, [this.x, ...spec.series.map((series) => series.values)],
        parent);
  }

  seriesOptions(spec, series) {
    const color = themeColor(series.color);
    return {
      label: series.name,
      show: Charts.isShown(spec, series),
      stroke: series.thin ? themeColor('live-thin') : color,
      width: series.thin ? 1 : 1.25,
      fill: series.fill ? themeColor(`${series.color}-fill`) : undefined,
      points: {show: false},
      paths: uPlot.paths.stepped({align: series.isRate ? -1 : 1}),
      spanGaps: false,
    };
  }

  xAxis() {
    const isTime = this.state.get('axis') === 'time';
    return {
      stroke: themeColor('muted'),
      grid: {stroke: themeColor('grid'), width: 1},
      ticks: {stroke: themeColor('grid'), width: 1, size: 4},
      font: '11px system-ui, sans-serif',
      size: 26,
      gap: 2,
      space: 70,
      values: (plot, ticks) => {
        const step = ticks.length > 1 ? ticks[1] - ticks[0] : this.end;
        return ticks.map((tick) => isTime ? formatMoment(tick, this.end, step)
                                          : trimZeros(formatShortCount(tick)));
      },
    };
  }

  yAxis(spec) {
    return {
      stroke: themeColor('muted'),
      grid: {stroke: themeColor('grid'), width: 1},
      ticks: {show: false},
      font: '11px system-ui, sans-serif',
      size: 62,
      gap: 4,
      splits: spec.ticks === formatBytes
          ? (plot, axis, min, max) => byteSplits(max) : undefined,
      space: 26,
      values: (plot, ticks) =>
          ticks.map((tick) => trimZeros(spec.ticks(tick))),
    };
  }

  // The moment's line lies over the canvas, so that moving it redraws nothing.
  prepareOverlay(plot) {
    const line = element('div', {class: 'playhead'});
    plot.over.append(line);
    plot.playhead = line;
    plot.over.addEventListener('wheel', (event) => {
      event.preventDefault();
      const box = plot.over.getBoundingClientRect();
      this.wheel((event.clientX - box.left) / box.width, event.deltaY);
    }, {passive: false});
    plot.over.addEventListener('mouseleave', () => this.hover(null));
  }

  // Near the moment's line, or with shift, dragging moves the line.
  startDrag(plot, event, handle) {
    if (event.button !== 0) {
      return;
    }
    const box = plot.over.getBoundingClientRect();
    const at = event.clientX - box.left;
    const moveTo = (clientX) => this.showMoment(
        plot.posToVal(clientX - box.left, 'x'));
    const line = plot.valToPos(this.x[this.currentFrame()], 'x');
    if (event.shiftKey || Math.abs(at - line) <= 5) {
      event.preventDefault();
      const move = (moved) => moveTo(moved.clientX);
      const stop = () => {
        removeEventListener('mousemove', move);
        removeEventListener('mouseup', stop);
      };
      addEventListener('mousemove', move);
      addEventListener('mouseup', stop);
      moveTo(event.clientX);
      return;
    }
    const up = (released) => {
      removeEventListener('mouseup', up);
      if (Math.abs(released.clientX - event.clientX) < 4) {
        moveTo(released.clientX);
      }
    };
    addEventListener('mouseup', up);
    handle(event);
  }

  currentFrame() {
    return this.report.cells.frames[this.state.get('step')];
  }

  // The last frame not after `x` on the axis.
  frameAt(x) {
    let low = 0;
    let high = this.x.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.x[middle] <= x) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  showMoment(x) {
    this.state.set({step: stepOfFrame(this.report, this.frameAt(x))});
  }

  // uPlot ended a drag in one of the plots.
  selected(plot) {
    const {left, width} = plot.select;
    if (width < 4) {
      return;
    }
    const from = this.frameAt(plot.posToVal(left, 'x'));
    const to = this.frameAt(plot.posToVal(left + width, 'x'));
    plot.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
    const first = this.measures.stepOfFrame(from);
    const last = Math.max(first + 1, this.measures.stepFromFrame(to));
    this.state.set({
      range: [first, Math.min(last, this.report.changes.frames.length - 1)],
    });
  }

  drawRange(plot) {
    const range = this.state.get('range');
    if (!range) {
      return;
    }
    const [from, to] = range.map((step) => plot.valToPos(
        this.x[this.report.changes.frames[step]], 'x', true));
    const {left, top, width, height} = plot.bbox;
    const start = Math.max(from, left);
    const end = Math.min(to, left + width);
    if (end > start) {
      plot.ctx.fillStyle = themeColor('range');
      plot.ctx.fillRect(start, top, end - start, height);
    }
  }

  showRange() {
    const range = this.state.get('range');
    byId('range-tools').hidden = !range;
    const duration = this.report.totals.durationNs;
    byId('range-text').textContent = range
        ? range.map((step) => formatMoment(
              this.measures.timeOfStep(step), duration)).join(' – ')
        : '';
  }

  wheel(part, delta) {
    const [min, max] = this.zoom || [0, this.end];
    const factor = delta > 0 ? 1.25 : 0.8;
    const at = min + part * (max - min);
    const width = Math.max((max - min) * factor, this.end * 1e-7, 1);
    const from = Math.max(0, at - part * width);
    this.zoomTo(width >= this.end ? null
                                  : [from, Math.min(this.end, from + width)]);
  }

  zoomToRange() {
    const range = this.state.get('range');
    if (range) {
      const [from, to] =
          range.map((step) => this.x[this.report.changes.frames[step]]);
      this.zoomTo(to > from ? [from, to] : null);
    }
  }

  zoomTo(zoom) {
    this.zoom = zoom;
    for (const {plot} of this.specs) {
      plot.setScale('x', {min: 0, max: this.end});
    }
    this.showZoom();
  }

  showZoom() {
    byId('zoom-out').disabled = !this.zoom;
  }

  redraw() {
    for (const {plot} of this.specs) {
      plot.redraw(false);
    }
  }

  resize() {
    for (const spec of this.specs) {
      const width = byId(`${spec.id}-chart`).clientWidth;
      if (width > 0 && width !== spec.plot.width) {
        spec.plot.setSize({width, height: spec.height});
      }
    }
  }

  placePlayhead(plot) {
    const at = plot.valToPos(this.x[this.currentFrame()], 'x');
    plot.playhead.hidden = !(at >= 0 && at <= plot.over.clientWidth);
    plot.playhead.style.transform = `translateX(${Math.round(at)}px)`;
  }

  hover(index) {
    if (index !== this.hovered) {
      this.hovered = index;
      this.showLegends();
    }
  }

  // `partOf`: the series whose legend hides this one too.
  static isShown(spec, series) {
    return !spec.hidden.has(series.partOf || series.key);
  }

  // Hides a series, or shows it again: a large one makes the others flat.
  toggle(spec, key) {
    if (!spec.hidden.delete(key)) {
      spec.hidden.add(key);
    }
    spec.series.forEach((series, i) => {
      if ((series.partOf || series.key) === key) {
        spec.plot.setSeries(i + 1, {show: Charts.isShown(spec, series)});
      }
    });
  }

  buildLegend(spec) {
    spec.outputs = [];
    const entries = spec.series.filter((series) => series.legend)
        .sort((a, b) => a.order - b.order);
    byId(`${spec.id}-legend`).replaceChildren(...entries.map((series) => {
      const output = element('b', {'data-series': series.key});
      spec.outputs.push([series, output]);
      const entry = element(
          'button', {
            type: 'button', class: 'entry', title: series.title || 'Hide or show',
            'data-toggle': series.key,
            'aria-pressed': String(Charts.isShown(spec, series)),
            click: () => {
              this.toggle(spec, series.key);
              entry.setAttribute(
                  'aria-pressed', String(Charts.isShown(spec, series)));
            },
          },
          element('i', {class: `swatch color-${series.color}`}),
          `${series.name} `, output);
      return entry;
    }));
  }

  // Values where the mouse is, or else at the moment shown.
  showLegends() {
    const frame = this.hovered === null || this.hovered === undefined
        ? this.currentFrame() : this.hovered;
    for (const spec of this.specs) {
      for (const [series, output] of spec.outputs) {
        const value = series.legend[frame];
        output.textContent = value === null ? '–' : series.format(value);
      }
    }
  }
}

// Round numbers of bytes: powers of two and their multiples.
function byteSplits(max) {
  let step = 2 ** Math.max(0, Math.ceil(Math.log2(max / 5)));
  if (step * 2.5 > max) {
    step /= 2;
  }
  const splits = [];
  for (let value = 0; value <= max; value += step) {
    splits.push(value);
  }
  return splits;
}

// The last of the map's moments that is not after a frame.
function stepOfFrame(report, frame) {
  const {frames} = report.cells;
  let low = 0;
  let high = frames.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (frames[middle] <= frame) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}
