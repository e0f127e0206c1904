// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the map's colours mean: one scheme a mode, each with a colour for a cell
// and a legend. Colours are 32-bit words as image data has them.

const MAP_MODES = [
  ['fill', 'Occupancy', 'How much of a cell is live blocks'],
  ['age', 'Age', 'How long a cell has not been empty'],
  ['size', 'Size', 'The block sizes that most of a cell belongs to'],
  ['site', 'Site', 'The allocation site that most of a cell belongs to'],
  ['thread', 'Thread', 'The thread that allocated most of a cell'],
];

const OWNER_SIZE_NAMES = [
  '≤ 16 B', '≤ 32 B', '≤ 64 B', '≤ 128 B', '≤ 256 B', '≤ 512 B', '≤ 1 KiB',
  '≤ 2 KiB', '≤ 4 KiB', '≤ 16 KiB', '≤ 128 KiB', '> 128 KiB',
];

const RAMP_STEPS = 64;

function parseColor(text) {
  const value = parseInt(text.slice(1), 16);
  return [value >> 16 & 255, value >> 8 & 255, value & 255];
}

// Little-endian: alpha, blue, green, red from the top.
function packColor([red, green, blue]) {
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
}

// Colours between stops that are evenly apart.
function colorRamp(stops, steps) {
  const colors = stops.map(parseColor);
  return Array.from({length: steps}, (unused, i) => {
    const at = i / (steps - 1) * (colors.length - 1);
    const first = Math.min(Math.floor(at), colors.length - 2);
    const part = at - first;
    return colors[first].map(
        (value, k) => Math.round(value + part * (colors[first + 1][k] - value)));
  });
}

function themeRamp(name, steps) {
  return colorRamp(themeColor(name).split(/\s+/), steps);
}

class MapColors {
  constructor(report) {
    this.report = report;
    this.load();
  }

  // Again when the colour scheme changes.
  load() {
    const {owners} = this.report.head;
    this.free = packColor(parseColor(themeColor('map-free')));
    this.unmapped = packColor(parseColor(themeColor('map-unmapped')));
    this.fillRamp = themeRamp('ramp-fill', RAMP_STEPS);
    this.fill = Uint32Array.from(this.fillRamp, packColor);
    this.ageRamp = themeRamp('ramp-age', RAMP_STEPS);
    this.age = Uint32Array.from(this.ageRamp, packColor);
    this.categories =
        themeColor('categories').split(/\s+/).map(parseColor);
    this.sizes = themeRamp('ramp-size', owners.sizes);
  }

  categoryColor(mode, index) {
    if (mode === 'size') {
      return this.sizes[index];
    }
    const count = this.report.head.owners[`${mode}s`];
    // The last one is everybody else.
    return index === count - 1
        ? this.categories[this.categories.length - 1] : this.categories[index];
  }

  // Returns a function from a cell's number to its colour.
  painter(mode, state, step) {
    const {free, unmapped} = this;
    const {bytes, blocks, mapped, owner, since} = state;
    const knowsMapped = this.report.totals.maps > 0;
    const empty = (cell) => mapped[cell] > 0 || !knowsMapped ? free : unmapped;
    if (mode === 'fill') {
      const scale = (RAMP_STEPS - 1) / this.report.cellBytes;
      return (cell) => blocks[cell] === 0 ? empty(cell)
          : this.fill[Math.ceil(Math.max(0, bytes[cell]) * scale)];
    }
    if (mode === 'age') {
      const {time} = this.report.frames;
      const {frames} = this.report.cells;
      const now = time[frames[step]];
      const scale = (RAMP_STEPS - 1) / Math.max(now, 1);
      return (cell) => blocks[cell] === 0 ? empty(cell)
          : this.age[Math.round((now - time[frames[since[cell]]]) * scale)];
    }
    const {owners} = this.report.head;
    const lookup = new Uint32Array(
        2 + owners.sites * owners.threads * owners.sizes);
    for (let i = 2; i < lookup.length; ++i) {
      const index = CellStates.unpackOwner(i, owners)[mode];
      lookup[i] = packColor(this.categoryColor(mode, index));
    }
    lookup[1] = this.fill[0];
    return (cell) => blocks[cell] === 0 ? empty(cell) : lookup[owner[cell]];
  }

  ownerName(mode, index) {
    const {head, sites} = this.report;
    if (mode === 'size') {
      return OWNER_SIZE_NAMES[index];
    }
    if (index === head.owners[`${mode}s`] - 1) {
      return 'all others';
    }
    if (mode === 'site') {
      return index < sites.place.length ? this.siteName(index) : '';
    }
    const thread = head.threads[head.ownerThreads[index]];
    return thread ? threadName(thread) : '';
  }

  // With where it is, if another site of the map has the same name.
  siteName(index) {
    const {head, sites, places} = this.report;
    const place = places[sites.place[index]];
    const shown = sites.place.slice(0, head.owners.sites - 1);
    const isShared = shown.some((other, i) =>
        i !== index && places[other].name === place.name);
    return isShared ? `${place.name} ${baseName(place.where)}` : place.name;
  }

  legend(mode, usedOwners) {
    const css = (color) => `rgb(${color})`;
    const swatch = (color, text) => {
      const box = element('i', {class: 'swatch'});
      box.style.background = color;
      return element('span', {class: 'entry', title: text}, box,
                     element('span', {class: 'words'}, text));
    };
    const ramp = (colors, from, to) => {
      const bar = element('i', {class: 'ramp'});
      bar.style.background = `linear-gradient(90deg, ${
          colors.filter((c, i) => i % 7 === 0).map(css)})`;
      return element('span', {class: 'entry'}, from, bar, to);
    };
    const empties = [swatch(themeColor('map-free'), 'free')];
    if (this.report.totals.maps > 0) {
      empties.push(swatch(themeColor('map-unmapped'), 'not mapped'));
    }
    if (mode === 'fill') {
      return [ramp(this.fillRamp, 'nearly empty', 'full'), ...empties];
    }
    if (mode === 'age') {
      return [ramp(this.ageRamp, 'new', 'since the start'), ...empties];
    }
    const names = [...usedOwners].sort((a, b) => a - b).map((index) => swatch(
        css(this.categoryColor(mode, index)), this.ownerName(mode, index)));
    return [...names, ...empties];
  }
}

function threadName(thread) {
  return thread.name ? `${thread.name} (${thread.tid})` : String(thread.tid);
}
