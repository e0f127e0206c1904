// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The bar that chooses the moment: a slider over all moments of the map, steps,
// playing, and keys. Playing goes evenly along the charts' axis.

const PLAY_MS = 15000;

class Scrubber {
  constructor(report, state) {
    this.report = report;
    this.state = state;
    this.last = report.cells.frames.length - 1;
    this.slider = byId('moment');
    this.slider.max = String(this.last);
    this.slider.addEventListener('input', () => {
      this.stop();
      state.set({step: Number(this.slider.value)});
    });
    byId('step-back').addEventListener('click', () => this.move(-1));
    byId('step-on').addEventListener('click', () => this.move(1));
    byId('to-peak').addEventListener('click', () => this.toPeak());
    byId('play').addEventListener('click', () => this.togglePlay());
    document.addEventListener('keydown', (event) => this.key(event));
    state.on(['step'], () => this.show());
    this.show();
  }

  move(by) {
    this.stop();
    const step = this.state.get('step') + by;
    this.state.set({step: Math.min(this.last, Math.max(0, step))});
  }

  toPeak() {
    this.stop();
    this.state.set({step: peakStep(this.report)});
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey ||
        /^(INPUT|BUTTON|SELECT|TEXTAREA|SUMMARY)$/.test(event.target.tagName) ||
        event.target.closest('#flame-canvas, #site-table')) {
      return;
    }
    const actions = {
      ArrowLeft: () => this.move(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.move(event.shiftKey ? 10 : 1),
      Home: () => this.move(-Infinity),
      End: () => this.move(Infinity),
      ' ': () => this.togglePlay(),
      p: () => this.toPeak(),
      Escape: () => this.state.set({range: null}),
    };
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  togglePlay() {
    if (this.playing) {
      this.stop();
      return;
    }
    const {report} = this;
    const x = this.state.get('axis') === 'time' ? report.frames.time
                                                : report.frames.events;
    const end = x[x.length - 1];
    let step = this.state.get('step');
    if (step === this.last) {
      step = 0;
    }
    let at = x[report.cells.frames[step]];
    let before = null;
    const tick = (now) => {
      if (this.playing !== tick) {
        return;
      }
      at += before === null ? 0 : (now - before) / PLAY_MS * end;
      before = now;
      while (step < this.last && x[report.cells.frames[step + 1]] <= at) {
        ++step;
      }
      this.state.set({step});
      if (step === this.last) {
        this.stop();
      } else {
        requestAnimationFrame(tick);
      }
    };
    this.playing = tick;
    byId('play').textContent = '❚❚ Pause';
    requestAnimationFrame(tick);
  }

  stop() {
    this.playing = null;
    byId('play').textContent = '▶ Play';
  }

  show() {
    const step = this.state.get('step');
    const {frames, totals, cells} = this.report;
    const frame = cells.frames[step];
    this.slider.value = String(step);
    const moment = formatMoment(frames.time[frame], totals.durationNs);
    this.slider.setAttribute(
        'aria-valuetext', `${moment}, ${formatBytes(frames.live[frame])} live`);
    const values = [
      ['moment', moment, frames.time[frame]],
      ['live', `${formatBytes(frames.live[frame])} live`, frames.live[frame]],
      ['blocks', `${formatCount(frames.blocks[frame])} blocks`,
       frames.blocks[frame]],
      ['events', `event ${formatCount(frames.events[frame])}`,
       frames.events[frame]],
    ];
    byId('now').replaceChildren(...values.map(([name, text, value]) => element(
        'span', {'data-now': name, 'data-value': String(value)}, text)));
  }
}

function peakStep(report) {
  const {frames, totals} = report;
  let frame = 0;
  while (frame + 1 < frames.count &&
         frames.events[frame] < totals.peakEvents) {
    ++frame;
  }
  return stepOfFrame(report, frame);
}
