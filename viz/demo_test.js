// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The demo's page, of a real program: the figures that the demo printed, those
// of its log, and the four views.

'use strict';

const {
  assert, fs, path, logFigures, startBrowser, openReport, settled, colorCount,
  canvasHash, runTests,
} = require('./page_test_harness.js');

const folder = process.env.DEMO_DIR;
const log = path.join(folder, 'demo.heaplog');
const printed = fs.readFileSync(path.join(folder, 'demo.txt'), 'utf8');
let browser;
let page;

const figure = async (name) => Number(await page.getAttribute(
    `[data-figure="${name}"]`, 'data-value'));

const tests = {
  async 'printed figures are on the page'() {
    const [, peak] = /^peak live bytes: (\d+)$/m.exec(printed);
    const [, allocations] = /^allocations: (\d+)$/m.exec(printed);
    const [, bytes] = /^top site at the peak: .+, (\d+) bytes$/m.exec(printed);
    assert.strictEqual(await figure('peakLiveBytes'), Number(peak));
    assert.strictEqual(await figure('allocations'), Number(allocations));
    const top = await page.getAttribute(
        '#site-table tr.row td[data-measure="atPeak"]', 'data-value');
    assert.strictEqual(Number(top), Number(bytes));
  },

  async 'page has the figures of the log'() {
    const {totals} = logFigures(log);
    assert.strictEqual(totals.whole, true);
    for (const name of ['peakLiveBytes', 'liveBytes', 'allocations', 'frees',
                        'temporary', 'peakResidentBytes']) {
      assert.strictEqual(await figure(name), totals[name], name);
    }
    assert(totals.allocations > 50000, 'sqlite3 works');
    assert(totals.peakLiveBytes > 10 << 20, 'sqlite3 holds the table');
    assert.strictEqual(await page.textContent('#program'), 'sqlite3');
    assert.strictEqual(await page.textContent('#status'), 'log complete');
  },

  async 'moments of the run are exact'() {
    const shown = await page.evaluate(() => {
      const {report: r, views} = window.heapReport;
      return [0.1, 0.35, 0.6, 0.85, 1].map((part) => {
        const step = Math.round(part * (r.cells.frames.length - 1));
        const frame = r.cells.frames[step];
        return {
          time: r.frames.time[frame], live: r.frames.live[frame],
          footprint: r.frames.footprint[frame], blocks: r.frames.blocks[frame],
          inCells: views.map.cells.at(step).bytes.reduce((a, b) => a + b, 0),
        };
      });
    });
    const wanted =
        logFigures(log, shown.map((moment) => moment.time)).moments;
    shown.forEach((moment, i) => {
      assert.strictEqual(moment.live, wanted[i].live);
      assert.strictEqual(moment.inCells, wanted[i].live);
      assert.strictEqual(moment.footprint, wanted[i].footprint);
      assert.strictEqual(moment.blocks, wanted[i].blocks);
    });
  },

  async 'the four views show it'() {
    for (const selector of ['#memory-chart canvas', '#map-canvas',
                            '#fragmentation-chart canvas', '#flame-canvas']) {
      assert(await colorCount(page, selector) >= 4, selector);
    }
    assert((await page.$$('#site-table tr.row')).length > 10);
    const names = await page.evaluate(
        () => window.heapReport.report.places.map((place) => place.name));
    // A function's name, or what a stripped program's functions are called.
    assert(names.some((name) => name.includes('sqlite3')));
    const before = await canvasHash(page, '#map-canvas');
    await page.focus('#moment');
    await page.keyboard.press('PageUp');
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#map-canvas'), before);
    assert.deepStrictEqual(page.complaints, []);
  },

  async 'the page is small'() {
    const {size} = fs.statSync(path.join(folder, 'demo.html'));
    assert(size < 2 << 20, `${size} bytes`);
  },
};

async function main() {
  browser = await startBrowser();
  page = await openReport(browser, path.join(folder, 'demo.html'));
  const status = await runTests(tests);
  await browser.close();
  return status;
}

main().then((status) => process.exit(status), (error) => {
  console.log(error.stack);
  process.exit(1);
});
