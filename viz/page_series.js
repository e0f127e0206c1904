// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the three charts draw: for each its lines, their values at every frame,
// and how a legend says them. Areas lie in front of each other, the widest
// first, so what is seen of one is the difference to the next.

function memorySeries(report) {
  const {frames, totals} = report;
  const above = (upper, lower) =>
      upper.map((value, i) => Math.max(0, value - lower[i]));
  const series = [
    {
      name: 'Live', color: 'live', fill: true, values: frames.live,
      legend: frames.live, key: 'live',
    },
    {
      name: 'Rounding', color: 'rounding', fill: true, values: frames.usable,
      legend: above(frames.usable, frames.live), key: 'usable',
    },
    {
      name: 'Holes', color: 'holes', fill: true, values: frames.footprint,
      legend: above(frames.footprint, frames.usable), key: 'footprint',
    },
  ];
  if (totals.maps > 0) {
    series.push({
      name: 'Mapped, unused', color: 'mapped', fill: true,
      values: frames.mapped, legend: above(frames.mapped, frames.footprint),
      key: 'mapped',
    });
  }
  series.forEach((entry, i) => {
    entry.order = i;
  });
  series.reverse();
  // What live bytes rose to between two moments, where a line from one to the
  // other would hide it.
  series.push({
    name: 'Live, highest between moments', color: 'live', thin: true,
    values: frames.highest, legend: null, key: 'highest', partOf: 'live',
  });
  if (totals.samples > 0) {
    series.push({
      name: 'Resident', color: 'resident', values: afterFirst(frames.resident),
      legend: frames.resident, key: 'resident', order: 9,
      title: 'Hide or show. Hidden at first where most of the process\'s ' +
             'memory is not in this heap',
    });
  }
  return series.map((entry) => ({...entry, format: formatBytes}));
}

// A program that has most of its memory elsewhere (mapped files, another
// allocator) would make a flat line of its heap.
function isResidentElsewhere({frames, totals}) {
  const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);
  const heap = Math.max(most(frames.mapped), most(frames.footprint));
  return totals.samples > 0 && most(frames.resident) > 4 * heap;
}

// Nothing is known before the first sample.
function afterFirst(values) {
  let seen = false;
  return Array.from(values, (value) => {
    seen = seen || value > 0;
    return seen ? value : null;
  });
}

function fragmentationSeries(report) {
  const {frames, totals} = report;
  const share = (part, whole) => Array.from(
      part, (value, i) => whole[i] > 0
          ? Math.max(0, 100 * (1 - value / whole[i])) : null);
  const format = (value) =>
      value === null ? '–' : `${value.toFixed(1)}\u00a0%`;
  const fragmentation = share(frames.live, frames.footprint);
  const series = [{
    name: 'Fragmentation', color: 'holes', values: fragmentation,
    legend: fragmentation, key: 'fragmentation', format,
  }];
  if (totals.maps > 0) {
    const unused = share(frames.footprint, frames.mapped);
    series.unshift({
      name: 'Mapped, unused', color: 'muted', values: unused, legend: unused,
      key: 'unused', format,
    });
  }
  return series;
}

// Events a second over a window of at least 1/400 of the run, as two events a
// nanosecond apart are no rate. A value is that of the time before its frame.
function rates(counts, times) {
  const last = times.length - 1;
  const window = Math.max(times[last] / 400, 1);
  let from = 0;
  return Array.from(counts, (count, i) => {
    while (from + 1 < i && times[i] - times[from + 1] >= window) {
      ++from;
    }
    const span = Math.max(times[i] - times[from], window);
    return i === 0 ? 0 : (count - counts[from]) / span * 1e9;
  });
}

function activitySeries(report) {
  const {frames} = report;
  const format = (value) => `${formatShortCount(value)}/s`;
  return [
    ['Allocations', 'allocations', 'live'],
    ['Frees', 'frees', 'frees'],
    ['Temporary', 'temporary', 'temporary'],
  ].map(([name, key, color]) => {
    const values = rates(frames[key], frames.time);
    return {name, key, color, values, legend: values, format, isRate: true};
  });
}
