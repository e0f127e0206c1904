// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Puts the page together.

function isValidState(report) {
  const isStep = (value, table) =>
      Number.isInteger(value) && value >= 0 && value < table.frames.length;
  const oneOf = (...values) => (value) => values.includes(value);
  const checks = {
    step: (value) => isStep(value, report.cells),
    range: (value) => Array.isArray(value) && value.length === 2 &&
        value.every((step) => isStep(step, report.changes)) &&
        value[0] < value[1],
    metric: oneOf(...Object.keys(MEASURES)),
    axis: oneOf('time', 'events'),
    mode: oneOf(...MAP_MODES.map(([mode]) => mode)),
    group: oneOf('site', 'function', 'module'),
    turn: oneOf('callers', 'sites'),
    search: (value) => typeof value === 'string' && value.length < 200,
  };
  return (name, value) => checks[name](value);
}

function connectControls(report, state, measures) {
  const axis = segmentedControl(
      byId('axis'), 'Horizontal axis', [
        ['time', 'Time', 'As the clock ran'],
        ['events', 'Events', 'As the program worked: sleeping takes no room'],
      ], (value) => state.set({axis: value}));
  const metric = segmentedControl(
      byId('metric'), 'Measured by',
      Object.entries(MEASURES).map(
          ([name, {label, title}]) => [name, label, title]),
      (value) => state.set({metric: value}));
  const search = byId('search');
  search.addEventListener(
      'input', () => state.set({search: search.value.slice(0, 199)}));
  const show = () => {
    axis.show(state.get('axis'));
    metric.show(state.get('metric'));
    const range = state.get('range');
    const duration = report.totals.durationNs;
    byId('where-range').textContent = range
        ? `from ${range.map((step) => formatMoment(
              measures.timeOfStep(step), duration)).join(' to ')}`
        : 'in the whole run';
    if (document.activeElement !== search) {
      search.value = state.get('search');
    }
  };
  state.on(['axis', 'metric', 'range', 'search'], show);
  show();
}

async function main() {
  const data = byId('data');
  const report = await unpackReport(data.textContent);
  data.remove();
  byId('loading').remove();
  byId('main').hidden = false;
  const state = new State({
    step: peakStep(report),
    range: null,
    metric: 'atPeak',
    axis: 'time',
    mode: 'fill',
    group: 'site',
    turn: 'callers',
    search: '',
  });
  state.load(location.hash, isValidState(report));
  const measures = new Measures(report);
  showProcess(report);
  const scrubber = new Scrubber(report, state);
  showFigures(report, () => scrubber.toPeak());
  showDetails(report);
  connectControls(report, state, measures);
  const views = {
    charts: new Charts(report, state, measures),
    map: new HeapMap(report, state),
    sites: new SiteTable(report, state, measures),
    flame: new Flame(report, state, measures),
    shapes: new Shapes(report, state),
  };
  // For tests, and for the curious in the browser's console.
  window.heapReport = {report, state, measures, views};
  document.documentElement.dataset.ready = 'yes';
}

main().catch((error) => {
  const loading = byId('loading');
  if (loading) {
    loading.textContent = `This page could not be unpacked: ${error.message}`;
  }
  throw error;
});
