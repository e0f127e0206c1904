// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The state of every cell of the map at any of its moments. The page carries
// changes only; once, on loading, all are played and the state is copied every
// so many changes, so that any moment is a copy and a few changes away.

class CellStates {
  constructor(report) {
    this.cells = report.cells;
    this.count = report.segments.reduce((sum, s) => sum + s.cells, 0);
    this.keyframes = [];
    this.step = 0;
    this.state = this.emptyState();
    this.keyframes.push({step: 0, state: this.copy(this.state)});
    const spacing = Math.max(20000, this.cells.cell.length / 24);
    let last = 0;
    for (let step = 1; step < this.cells.frames.length; ++step) {
      this.apply(step);
      if (this.cells.starts[step + 1] - last >= spacing) {
        last = this.cells.starts[step + 1];
        this.keyframes.push({step, state: this.copy(this.state)});
      }
    }
    this.step = this.cells.frames.length - 1;
  }

  emptyState() {
    return {
      bytes: new Float64Array(this.count),
      mapped: new Float64Array(this.count),
      blocks: new Int32Array(this.count),
      owner: new Uint16Array(this.count).fill(1),
      // The step at which the cell last stopped being empty.
      since: new Int32Array(this.count),
    };
  }

  copy(state) {
    const copied = {};
    for (const [name, values] of Object.entries(state)) {
      copied[name] = values.slice();
    }
    return copied;
  }

  apply(step) {
    const {cells, state} = this;
    for (let i = cells.starts[step]; i < cells.starts[step + 1]; ++i) {
      const cell = cells.cell[i];
      const blocks = state.blocks[cell];
      state.bytes[cell] += cells.bytes[i];
      state.mapped[cell] += cells.mapped[i];
      state.blocks[cell] += cells.blocks[i];
      if (cells.owner[i] !== 0) {
        state.owner[cell] = cells.owner[i];
      }
      if (blocks === 0 && state.blocks[cell] > 0) {
        state.since[cell] = step;
      }
    }
  }

  // The state at a step; it changes with the next call.
  at(step) {
    if (step < this.step || step > this.step + 32) {
      let from = this.keyframes.length - 1;
      while (this.keyframes[from].step > step) {
        --from;
      }
      const keyframe = this.keyframes[from];
      if (step < this.step || keyframe.step > this.step) {
        for (const [name, values] of Object.entries(keyframe.state)) {
          this.state[name].set(values);
        }
        this.step = keyframe.step;
      }
    }
    while (this.step < step) {
      this.apply(++this.step);
    }
    return this.state;
  }

  // Numbers of the first site, thread and size class of an owner as the tool
  // packed it (cell_recorder.h), or null in an empty cell.
  static unpackOwner(owner, owners) {
    if (owner < 2) {
      return null;
    }
    const packed = owner - 2;
    return {
      size: packed % owners.sizes,
      thread: Math.floor(packed / owners.sizes) % owners.threads,
      site: Math.floor(packed / owners.sizes / owners.threads),
    };
  }
}
