// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// For measure.sh: prints a table, a line for each number of events.

'use strict';

const {execFileSync} = require('child_process');
const {
  fs, makeLog, startBrowser, openReport,
} = require('./page_test_harness.js');

const RUNS = 3;
const STEPS = 60;

// Only whoever waits for a process learns how much memory it had.
const RUN_AND_MEASURE = `
import json, os, sys, time
start = time.monotonic()
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(json.dumps({'status': status, 'wall': time.monotonic() - start,
    'cpu': usage.ru_utime + usage.ru_stime, 'kib': usage.ru_maxrss}))
`;

function measureReport(log, page) {
  const runs = Array.from({length: RUNS}, () => JSON.parse(execFileSync(
      'python3', ['-c', RUN_AND_MEASURE, process.env.VIZ, 'report', log, '-o',
                  page, '--quiet'], {encoding: 'utf8'})));
  const least = (name) => Math.min(...runs.map((run) => run[name]));
  return {wall: least('wall'), cpu: least('cpu'), kib: least('kib')};
}

// Milliseconds from opening the file until all is drawn, and from one moment
// of the map to another that is far from it.
async function measurePage(browser, file) {
  let ready = Infinity;
  let step = Infinity;
  for (let run = 0; run < RUNS; ++run) {
    const page = await openReport(
        browser, file, {viewport: {width: 1400, height: 1000}});
    ready = Math.min(ready, await page.evaluate(() => performance.now()));
    step = Math.min(step, await page.evaluate(async (steps) => {
      const {state, report} = window.heapReport;
      const last = report.cells.frames.length - 1;
      const start = performance.now();
      for (let i = 0; i < steps; ++i) {
        state.set({step: Math.floor(i * 0.618 % 1 * last)});
        await new Promise((done) => requestAnimationFrame(done));
      }
      return (performance.now() - start) / steps;
    }, STEPS));
    await page.context().close();
  }
  return {ready, step};
}

function formatBytes(bytes) {
  return `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

async function main() {
  const browser = await startBrowser();
  console.log('events | log | time | CPU time | peak RSS | page | opens in | ' +
              'a moment in');
  for (const events of process.env.MEASURE_EVENTS.split(' ')) {
    const live = Math.round(Number(events) / 50);
    const log = makeLog(`events${events}`, `--events=${events}`,
                        `--live_blocks=${Math.min(live, 1000000)}`);
    const page = log.replace('.heaplog', '.html');
    const report = measureReport(log, page);
    const shown = await measurePage(browser, page);
    console.log([
      events, formatBytes(fs.statSync(log).size),
      `${report.wall.toFixed(2)} s`, `${report.cpu.toFixed(2)} s`,
      formatBytes(report.kib * 1024), formatBytes(fs.statSync(page).size),
      `${shown.ready.toFixed(0)} ms`, `${shown.step.toFixed(0)} ms`,
    ].join(' | '));
    fs.unlinkSync(log);
  }
  await browser.close();
}

main().catch((error) => {
  console.error(error.stack);
  process.exit(1);
});
