// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How large blocks are and how long they live: bars for each, and both at once.

class Shapes {
  constructor(report, state) {
    this.report = report;
    this.unit = 'blocks';
    this.lifetimes = report.histogram.lifetimeEnds.length + 2;
    this.sizes = report.histogram.blocks.length / this.lifetimes;
    this.units = segmentedControl(
        byId('shape-unit'), 'Counted in', [['blocks', 'Blocks'],
                                           ['bytes', 'Bytes']],
        (unit) => {
          this.unit = unit;
          this.draw();
        });
    const draw = onceAFrame(() => this.draw());
    new ResizeObserver(draw).observe(byId('shapes'));
    onThemeChange(draw);
    this.listen();
    this.draw();
  }

  sizeName(i) {
    return i === 0 ? '≤ 1 B'
        : `${formatBytes(2 ** (i - 1) + 1)} – ${formatBytes(2 ** i)}`;
  }

  lifetimeName(i) {
    const ends = this.report.histogram.lifetimeEnds;
    if (i === ends.length + 1) {
      return 'still live';
    }
    return i === 0 ? `< ${formatTime(ends[0])}`
        : i === ends.length ? `≥ ${formatTime(ends[i - 1])}`
        : `${formatTime(ends[i - 1])} – ${formatTime(ends[i])}`;
  }

  sums() {
    const values = this.report.histogram[this.unit];
    const bySize = new Float64Array(this.sizes);
    const byLifetime = new Float64Array(this.lifetimes);
    values.forEach((value, i) => {
      bySize[Math.floor(i / this.lifetimes)] += value;
      byLifetime[i % this.lifetimes] += value;
    });
    return {values, bySize, byLifetime};
  }

  // From the first bar with something in it to the last.
  static used(values) {
    let first = 0;
    let last = values.length - 1;
    while (first < last && values[first] === 0) {
      ++first;
    }
    while (last > first && values[last] === 0) {
      --last;
    }
    return [first, last];
  }

  draw() {
    this.units.show(this.unit);
    const {values, bySize, byLifetime} = this.sums();
    this.sizeRange = Shapes.used(bySize);
    this.lifetimeRange = Shapes.used(byLifetime);
    const shortTime = (i) => i === this.lifetimes - 1 ? 'live'
        : trimZeros(formatTime(
            this.report.histogram.lifetimeEnds[Math.max(0, i - 1)]));
    this.bars('size-canvas', bySize, this.sizeRange,
              (i) => trimZeros(formatBytes(2 ** i)), themeColor('live'));
    this.bars('lifetime-canvas', byLifetime, this.lifetimeRange, shortTime,
              themeColor('frees'));
    this.both(values, shortTime);
  }

  bars(id, values, [first, last], label, color) {
    const {context, width, height} = prepareCanvas(byId(id));
    const most = values.reduce((a, b) => Math.max(a, b), 1);
    const bar = width / (last - first + 1);
    const room = height - 16;
    context.font = '10.5px system-ui, sans-serif';
    for (let i = first; i <= last; ++i) {
      const x = (i - first) * bar;
      const tall = values[i] > 0
          ? Math.max(1, values[i] / most * (room - 4)) : 0;
      context.fillStyle = color;
      context.fillRect(x + 0.5, room - tall, Math.max(bar - 1.5, 1), tall);
    }
    Shapes.drawLabels(context, [first, last], label, 0, width, height);
    context.fillStyle = themeColor('grid');
    context.fillRect(0, room, width, 1);
  }

  both(values, shortTime) {
    const {context, width, height} = prepareCanvas(byId('both-canvas'));
    const [firstSize, lastSize] = this.sizeRange;
    const [firstTime, lastTime] = this.lifetimeRange;
    this.grid = {
      left: 54,
      wide: (width - 54) / (lastTime - firstTime + 1),
      tall: (height - 16) / (lastSize - firstSize + 1),
    };
    const {left, wide, tall} = this.grid;
    const ramp = themeRamp('ramp-size', 32);
    const most = Math.log1p(values.reduce((a, b) => Math.max(a, b), 1));
    context.font = '10.5px system-ui, sans-serif';
    const every = Math.max(1, Math.ceil(13 / tall));
    for (let size = firstSize; size <= lastSize; ++size) {
      const y = (lastSize - size) * tall;
      for (let time = firstTime; time <= lastTime; ++time) {
        const value = values[size * this.lifetimes + time];
        const shade = Math.round(Math.log1p(value) / most * 31);
        context.fillStyle = value === 0 ? themeColor('map-unmapped')
                                        : `rgb(${ramp[shade]})`;
        context.fillRect(left + (time - firstTime) * wide, y,
                         Math.max(wide - 1, 1), Math.max(tall - 1, 1));
      }
      if ((size - firstSize) % every === 0) {
        context.fillStyle = themeColor('muted');
        context.fillText(trimZeros(formatBytes(2 ** size)), 0,
                         y + tall / 2 + 4);
      }
    }
    Shapes.drawLabels(
        context, this.lifetimeRange, shortTime, left, width, height);
  }

  // What columns from `left` to `width` are, as many as there is room for: the
  // last one, and from the first one on.
  static drawLabels(context, [first, last], label, left, width, height) {
    const column = (width - left) / (last - first + 1);
    const gap = 10;
    const widthOf = (i) => context.measureText(label(i)).width;
    context.fillStyle = themeColor('muted');
    const end = Math.min(left + (last - first) * column, width - widthOf(last));
    context.fillText(label(last), end, height - 3);
    let free = left;
    for (let i = first; i < last; ++i) {
      const x = left + (i - first) * column;
      if (x >= free && x + widthOf(i) + gap <= end) {
        context.fillText(label(i), x, height - 3);
        free = x + widthOf(i) + gap;
      }
    }
  }

  listen() {
    const describe = (event, names, value) => tooltip.show(
        event.clientX, event.clientY,
        [...names, this.unit === 'bytes'
            ? formatBytes(value) : `${formatCount(value)} blocks`]);
    const onBars = (id, range, sums, name) => {
      const canvas = byId(id);
      canvas.addEventListener('mousemove', (event) => {
        const [first, last] = range();
        const i = first + Math.floor(
            event.offsetX / canvas.clientWidth * (last - first + 1));
        if (i <= last) {
          describe(event, [name(i)], sums()[i]);
        }
      });
      canvas.addEventListener('mouseleave', () => tooltip.hide());
    };
    onBars('size-canvas', () => this.sizeRange, () => this.sums().bySize,
           (i) => this.sizeName(i));
    onBars('lifetime-canvas', () => this.lifetimeRange,
           () => this.sums().byLifetime, (i) => this.lifetimeName(i));
    const both = byId('both-canvas');
    both.addEventListener('mousemove', (event) => {
      const {left, wide, tall} = this.grid;
      const time = this.lifetimeRange[0] +
          Math.floor((event.offsetX - left) / wide);
      const size = this.sizeRange[1] - Math.floor(event.offsetY / tall);
      if (event.offsetX < left || time > this.lifetimeRange[1] ||
          size < this.sizeRange[0]) {
        tooltip.hide();
        return;
      }
      describe(event, [this.sizeName(size), this.lifetimeName(time)],
               this.report.histogram[this.unit][size * this.lifetimes + time]);
    });
    both.addEventListener('mouseleave', () => tooltip.hide());
  }
}
