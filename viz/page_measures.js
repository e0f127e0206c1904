// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How much each slot (a call stack, or several small ones) weighs by each
// measure: over the whole run, or within a range of time. Ranges go from one of
// changes.frames to another, so all figures are exact for the times shown.

const MEASURES = {
  atPeak: {
    label: 'At peak',
    unit: 'bytes',
    title: 'Bytes live when the program as a whole held most',
    rangeTitle: 'Bytes live at the highest point of the range',
  },
  live: {
    label: 'Still live',
    unit: 'bytes',
    title: 'Bytes never freed: leaks, or what the program kept to its end',
    rangeTitle: 'Bytes allocated in the range and never freed',
  },
  now: {
    label: 'At cursor',
    unit: 'bytes',
    title: 'Bytes live at the moment that the map shows',
    rangeTitle: 'Bytes live at the moment that the map shows',
  },
  bytes: {
    label: 'Allocated',
    unit: 'bytes',
    title: 'All bytes ever allocated, whether freed or not',
    rangeTitle: 'Bytes allocated in the range, whether freed or not',
  },
  allocations: {
    label: 'Allocations',
    unit: 'count',
    title: 'How many blocks were allocated',
    rangeTitle: 'How many blocks were allocated in the range',
  },
  temporary: {
    label: 'Temporary',
    unit: 'count',
    title: 'Blocks freed before their thread allocated anything else',
    rangeTitle: 'Such blocks, freed in the range',
  },
};

function formatMeasure(measure, value) {
  return MEASURES[measure].unit === 'bytes' ? formatBytes(value)
                                            : formatCount(value);
}

class Measures {
  constructor(report) {
    this.report = report;
    this.count = report.slots.node.length;
    this.cache = new Map();
    this.nowStep = -1;
    this.liveTotals = this.sumLive();
  }

  // Index of the last of changes.frames that is not after `frame`.
  stepOfFrame(frame) {
    const {frames} = this.report.changes;
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

  // Index of the first of changes.frames that is not before `frame`.
  stepFromFrame(frame) {
    const step = this.stepOfFrame(frame);
    return this.report.changes.frames[step] < frame
        ? Math.min(step + 1, this.report.changes.frames.length - 1) : step;
  }

  timeOfStep(step) {
    return this.report.frames.time[this.report.changes.frames[step]];
  }

  // Values of a measure by slot. `range` as in State; `frame` for 'now'.
  bySlot(measure, range, frame) {
    if (measure === 'now') {
      return this.liveAt(this.stepOfFrame(frame));
    }
    if (!range) {
      return this.report.slots[measure];
    }
    const key = `${measure} ${range}`;
    if (!this.cache.has(key)) {
      if (this.cache.size > 40) {
        this.cache.clear();
      }
      this.cache.set(key, this.inRange(measure, range));
    }
    return this.cache.get(key);
  }

  inRange(measure, [from, to]) {
    const {changes, kept} = this.report;
    const values = new Float64Array(this.count);
    if (measure === 'live') {
      for (let i = 0; i < kept.slot.length; ++i) {
        // Slot frame numbers are without the origin.
        const step = kept.slotFrame[i] + 1;
        if (step > from && step <= to) {
          values[kept.slot[i]] += kept.bytes[i];
        }
      }
      return values;
    }
    if (measure === 'atPeak') {
      return this.liveAt(this.highestStep(from, to)).slice();
    }
    const column = changes[measure];
    for (let i = changes.starts[from + 1]; i < changes.starts[to + 1]; ++i) {
      values[changes.slot[i]] += column[i];
    }
    return values;
  }

  highestStep(from, to) {
    let highest = from;
    for (let step = from; step <= to; ++step) {
      if (this.liveTotals[step] > this.liveTotals[highest]) {
        highest = step;
      }
    }
    return highest;
  }

  sumLive() {
    const {frames} = this.report.changes;
    return frames.map((frame) => this.report.frames.live[frame]);
  }

  // Live bytes by slot at one of changes.frames. Valid until the next call.
  liveAt(step) {
    const {changes} = this.report;
    if (this.nowStep < 0 || step < this.nowStep) {
      this.now = new Float64Array(this.count);
      this.nowStep = 0;
    }
    for (let i = changes.starts[this.nowStep + 1];
         i < changes.starts[step + 1]; ++i) {
      this.now[changes.slot[i]] += changes.live[i];
    }
    this.nowStep = step;
    return this.now;
  }

  // Live bytes of some slots together over time: a value for each of
  // changes.frames. `isMember[slot]` is not 0 for those slots.
  history(members) {
    const {changes} = this.report;
    const deltas = new Float64Array(changes.frames.length);
    this.indexBySlot();
    for (const slot of members) {
      for (let i = this.slotStarts[slot]; i < this.slotStarts[slot + 1]; ++i) {
        const at = this.slotChanges[i];
        deltas[this.changeStep[at]] += changes.live[at];
      }
    }
    for (let step = 1; step < deltas.length; ++step) {
      deltas[step] += deltas[step - 1];
    }
    return deltas;
  }

  // For each slot its changes.
  indexBySlot() {
    if (this.slotStarts) {
      return;
    }
    const {changes} = this.report;
    const starts = new Uint32Array(this.count + 2);
    for (const slot of changes.slot) {
      ++starts[slot + 2];
    }
    for (let i = 1; i < starts.length; ++i) {
      starts[i] += starts[i - 1];
    }
    this.slotChanges = new Uint32Array(changes.slot.length);
    this.changeStep = new Uint32Array(changes.slot.length);
    for (let step = 0; step + 1 < changes.starts.length; ++step) {
      for (let i = changes.starts[step]; i < changes.starts[step + 1]; ++i) {
        this.changeStep[i] = step;
        this.slotChanges[starts[changes.slot[i] + 1]++] = i;
      }
    }
    this.slotStarts = starts;
  }
}
