// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The report in a real browser: that it draws, that its figures are those of
// the log, and that everything a user can do does what it says.

'use strict';

const {
  assert, fs, makeLog, makeReport, logFigures, startBrowser, openReport,
  settled, colorCount, canvasHash, runTests,
} = require('./page_test_harness.js');

const log = makeLog('plain', '--events=60000', '--live_blocks=3000');
const report = makeReport(log);
let browser;
let page;

const state = (name) =>
    page.evaluate((n) => window.heapReport.state.get(n), name);
const setState = async (changes) => {
  await page.evaluate((c) => window.heapReport.state.set(c), changes);
  await settled(page);
};
const text = (selector) => page.textContent(selector);

// Numbers in a column of the table.
const column = (measure) => page.$$eval(
    `#site-table tr.row td[data-measure="${measure}"]`,
    (cells) => cells.map((cell) => Number(cell.dataset.value)));

const sum = (values) => values.reduce((a, b) => a + b, 0);

async function showAllRows() {
  for (;;) {
    const more = await page.$('#site-table .more');
    if (!more) {
      return;
    }
    await more.click();
  }
}

async function figures() {
  return Object.fromEntries(await page.$$eval(
      '[data-figure]', (cards) => cards.map(
          (card) => [card.dataset.figure, Number(card.dataset.value)])));
}

async function chartBox() {
  await page.evaluate(() => scrollTo(0, 0));
  return (await page.$('#memory-chart .u-over')).boundingBox();
}

// Some moments of the map: steps and what the page says of them.
function momentsOfPage(count) {
  return page.evaluate((wanted) => {
    const {report: r, views} = window.heapReport;
    const last = r.cells.frames.length - 1;
    return Array.from({length: wanted}, (unused, i) => {
      const step = Math.round(i / (wanted - 1) * last);
      const frame = r.cells.frames[step];
      const cells = views.map.cells.at(step);
      // The fullest cell, and its neighbours.
      const fullest = cells.bytes.indexOf(Math.max(...cells.bytes));
      const start = views.map.addressOf(fullest);
      return {
        step,
        time: r.frames.time[frame],
        events: r.frames.events[frame],
        live: r.frames.live[frame],
        blocks: r.frames.blocks[frame],
        footprint: r.frames.footprint[frame],
        inCells: cells.bytes.reduce((a, b) => a + b, 0),
        start: `0x${start.toString(16)}`,
        end: `0x${(start + BigInt(r.cellBytes)).toString(16)}`,
        inFullest: cells.bytes[fullest],
      };
    });
  }, count);
}

const tests = {
  async 'opens without errors and without asking for anything'() {
    assert.deepStrictEqual(page.complaints, []);
    assert.strictEqual(await page.title(), 'synthetic: heap report');
    assert.strictEqual(await text('#status'), 'log complete');
  },

  async 'no canvas is blank'() {
    const canvases = {
      '#memory-chart canvas': 8, '#fragmentation-chart canvas': 4,
      '#activity-chart canvas': 4, '#map-canvas': 8, '#flame-canvas': 4,
      '#size-canvas': 2, '#lifetime-canvas': 2, '#both-canvas': 4,
      '#site-table canvas': 2,
    };
    for (const [selector, colors] of Object.entries(canvases)) {
      const count = await colorCount(page, selector);
      assert(count >= colors, `${selector} has ${count} colours`);
    }
  },

  async 'totals are those of the log'() {
    const {totals} = logFigures(log);
    const shown = await figures();
    for (const name of ['peakLiveBytes', 'liveBytes', 'allocations', 'frees',
                        'temporary', 'peakResidentBytes', 'threads']) {
      assert.strictEqual(shown[name], totals[name], name);
    }
    const head = await page.evaluate(() => window.heapReport.report.totals);
    for (const name of ['events', 'liveBlocks', 'durationNs', 'peakTimeNs']) {
      assert.strictEqual(head[name], totals[name], name);
    }
    assert(totals.allocations > 10000 && totals.temporary > 100);
  },

  async 'every moment is exact: live bytes, blocks, pages in use, cells'() {
    const shown = await momentsOfPage(25);
    const {peakTimeNs} = logFigures(log).totals;
    const wanted = logFigures(
        log, shown.map(({time, start, end}) => [time, start, end])).moments;
    shown.forEach((moment, i) => {
      assert.strictEqual(moment.inCells, moment.live, `step ${moment.step}`);
      if (moment.time === peakTimeNs && moment.events !== wanted[i].events) {
        return;  // The peak may lie between events of one time.
      }
      for (const name of ['live', 'blocks', 'footprint', 'events']) {
        assert.strictEqual(moment[name], wanted[i][name],
                           `${name} at step ${moment.step}`);
      }
      assert.strictEqual(moment.inFullest, wanted[i].inside);
    });
  },

  async 'sums by innermost function are those of the log'() {
    const shown = await page.evaluate(() => {
      const {report: r} = window.heapReport;
      const leaves = {};
      r.slots.node.forEach((node, slot) => {
        const place = r.places[r.nodes.place[node]];
        const address = place.kind === 'address'
            ? BigInt(place.module.start) + BigInt(place.offset) : 0n;
        const key = `0x${address.toString(16)}`;
        const leaf = leaves[key] || {allocations: 0, bytes: 0, live: 0};
        leaf.allocations += r.slots.allocations[slot];
        leaf.bytes += r.slots.bytes[slot];
        leaf.live += r.slots.live[slot];
        leaves[key] = leaf;
      });
      return leaves;
    });
    const {leaves} = logFigures(log);
    for (const [address, wanted] of Object.entries(leaves)) {
      assert.deepStrictEqual(shown[address], wanted, address);
    }
    assert(Object.keys(leaves).length > 200);
  },

  async 'the slider changes the map and the figures beside it'() {
    await page.focus('#moment');
    const seen = new Map();
    for (const key of ['Home', 'PageUp', 'PageUp', 'PageUp', 'End']) {
      await page.keyboard.press(key);
      await settled(page);
      const step = await state('step');
      seen.set(step, await canvasHash(page, '#map-canvas'));
      const now = await page.evaluate(() => Object.fromEntries(
          [...document.querySelectorAll('[data-now]')].map(
              (span) => [span.dataset.now, Number(span.dataset.value)])));
      const wanted = logFigures(log, [now.moment]).moments[0];
      assert.strictEqual(now.live, wanted.live);
      assert.strictEqual(now.blocks, wanted.blocks);
    }
    assert.strictEqual(seen.size, 5);
    assert.strictEqual(new Set(seen.values()).size, 5);
  },

  async 'keys step, jump to the peak, and play'() {
    await page.evaluate(() => document.activeElement.blur());
    await setState({step: 100});
    await page.keyboard.press('ArrowRight');
    assert.strictEqual(await state('step'), 101);
    await page.keyboard.press('ArrowLeft');
    await page.keyboard.press('ArrowLeft');
    assert.strictEqual(await state('step'), 99);
    await page.keyboard.press('Shift+ArrowRight');
    assert.strictEqual(await state('step'), 109);
    await page.keyboard.press('p');
    const live = await page.getAttribute('[data-now="live"]', 'data-value');
    assert.strictEqual(Number(live), (await figures()).peakLiveBytes);
    await setState({step: 0});
    await page.keyboard.press(' ');
    await page.waitForFunction(
        () => window.heapReport.state.get('step') > 20);
    await page.keyboard.press(' ');
    const stopped = await state('step');
    await settled(page);
    assert.strictEqual(await state('step'), stopped);
  },

  async 'a click in a chart shows that moment'() {
    const box = await chartBox();
    await page.mouse.click(box.x + box.width / 4, box.y + 50);
    await settled(page);
    const at = Number(
        await page.getAttribute('[data-now="moment"]', 'data-value'));
    const end = logFigures(log).totals.durationNs;
    assert(Math.abs(at - end / 4) < end / 50, `${at} of ${end}`);
  },

  async 'modes of the map differ and have legends'() {
    await setState({step: await page.evaluate(
        () => window.heapReport.report.cells.frames.length >> 1)});
    const seen = new Set();
    for (const mode of ['fill', 'age', 'size', 'site', 'thread']) {
      await page.click(`#map-mode [data-value="${mode}"]`);
      await settled(page);
      seen.add(await canvasHash(page, '#map-canvas'));
      assert(await page.$('#map-legend .entry'), mode);
    }
    assert.strictEqual(seen.size, 5);
    await page.click('#map-mode [data-value="fill"]');
  },

  async 'the map zooms, and tells what a cell is'() {
    const box = await (await page.$('#map-canvas')).boundingBox();
    await settled(page);
    const before = await canvasHash(page, '#map-canvas');
    await page.mouse.move(box.x + 160, box.y + 30);
    await page.mouse.wheel(0, -300);
    await page.waitForFunction(() => {
      const {view, cells} = window.heapReport.views.map;
      return view[1] - view[0] < cells.count;
    });
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#map-canvas'), before);
    await page.mouse.move(box.x + 170, box.y + 40);
    await page.waitForSelector('#tooltip:not([hidden])');
    const words = await text('#tooltip');
    assert.match(words, /0x[0-9a-f]+ – 0x[0-9a-f]+/);
    assert.match(words, /live of .*block/);
    await page.click('#map-fit');
    await page.mouse.move(5, 5);
    await settled(page);
    assert.strictEqual(await canvasHash(page, '#map-canvas'), before);
  },

  async 'the map fits its box however scattered the heap is'() {
    const overflows = await page.evaluate(() => {
      const {map} = window.heapReport.views;
      const failed = [];
      for (const count of [1, 8, 40, 200]) {
        for (const [width, height] of [[616, 512], [380, 460], [1200, 700]]) {
          // 32768 cells, as many as there may be.
          const segments = Array.from({length: count}, (unused, i) => ({
            first: Math.floor(32768 * i / count),
            cells: Math.floor(32768 * (i + 1) / count) -
                Math.floor(32768 * i / count),
          }));
          const layout = map.computeLayout.call(
              {view: [0, 32768], report: {segments}}, width, height);
          map.placeParts(layout);
          const last = layout.parts[layout.parts.length - 1];
          const bottom = last.y + last.rows * layout.tall;
          const right = 104 + layout.columns * layout.wide;
          if (layout.parts.length !== count || bottom > height ||
              right > width) {
            failed.push({count, width, height, bottom, right});
          }
        }
      }
      return failed;
    });
    assert.deepStrictEqual(overflows, []);
  },

  async 'the table sorts by any column, both ways'() {
    for (const measure of ['bytes', 'live', 'allocations', 'temporary']) {
      await page.click(`#site-table th [data-measure="${measure}"]`);
      const falling = await column(measure);
      assert(falling.length > 20);
      assert.deepStrictEqual(falling, [...falling].sort((a, b) => b - a));
      await page.click(`#site-table th [data-measure="${measure}"]`);
      const rising = await column(measure);
      assert.deepStrictEqual(rising, [...rising].sort((a, b) => a - b));
    }
    await setState({metric: 'atPeak'});
  },

  async 'sums of the table are the totals, however rows are made'() {
    const {totals} = logFigures(log);
    for (const group of ['site', 'function', 'module']) {
      await page.click(`#group [data-value="${group}"]`);
      await showAllRows();
      assert.strictEqual(sum(await column('allocations')), totals.allocations);
      assert.strictEqual(sum(await column('live')), totals.liveBytes);
      assert.strictEqual(sum(await column('atPeak')), totals.peakLiveBytes);
      assert.strictEqual(sum(await column('temporary')), totals.temporary);
    }
    assert.strictEqual((await page.$$('#site-table tr.row')).length, 2);
    await page.click('#group [data-value="site"]');
  },

  async 'the column at the cursor follows the slider'() {
    await setState({step: 0});
    await showAllRows();
    assert.strictEqual(sum(await column('now')), 0);
    await setState({step: await page.evaluate(
        () => window.heapReport.report.cells.frames.length - 1)});
    await showAllRows();
    assert.strictEqual(
        sum(await column('now')), logFigures(log).totals.liveBytes);
  },

  async 'a row opens to its stacks'() {
    await page.click('#site-table tr.row td.name button');
    const frames = await page.$$eval(
        '#site-table tr.stacks .stack li', (items) => items.length);
    assert(frames >= 1);
    await page.click('#site-table tr.row td.name button');
    assert.strictEqual(await page.$('#site-table tr.stacks'), null);
  },

  async 'searching keeps what matches, in table and flame graph'() {
    const rowCount = async () => parseInt(await text('#site-count'), 10);
    const all = await rowCount();
    const name = await text('#site-table tr.row .function');
    await page.fill('#search', name.toUpperCase());
    await settled(page);
    const rows = await rowCount();
    assert(rows >= 1 && rows < all, `${rows} of ${all}`);
    assert.match(await text('#flame-path'), /found$/);
    await page.fill('#search', 'no such function');
    await settled(page);
    assert.strictEqual((await page.$$('#site-table tr.row')).length, 0);
    await page.fill('#search', '');
    await settled(page);
    assert.strictEqual(await rowCount(), all);
  },

  async 'the flame graph zooms in and back, and turns over'() {
    const before = await canvasHash(page, '#flame-canvas');
    const point = await page.evaluate(() => {
      const {boxes, canvas} = window.heapReport.views.flame;
      canvas.scrollIntoView({block: 'center'});
      const box = boxes.find(
          (b) => b.row === 4 && b.width < canvas.clientWidth * 0.9);
      const {left, top} = canvas.getBoundingClientRect();
      return {x: left + box.x + box.width / 2, y: top + box.row * 18 + 9,
              value: box.node.value, name: box.node.place.name};
    });
    await page.mouse.click(point.x, point.y);
    assert((await text('#flame-path')).includes(`in ${point.name}`));
    assert.notStrictEqual(await canvasHash(page, '#flame-canvas'), before);
    await page.click('#flame-back');
    await page.mouse.move(5, 5);
    await page.evaluate(() => {
      window.heapReport.views.flame.selected = null;
      window.heapReport.views.flame.draw();
    });
    assert.strictEqual(await canvasHash(page, '#flame-canvas'), before);
    await page.click('#turn [data-value="sites"]');
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#flame-canvas'), before);
    const totals = await page.evaluate(() => ['callers', 'sites'].map(
        (turn) => window.heapReport.views.flame.trees.get(turn).nodes[0].value));
    assert.strictEqual(totals[0], totals[1]);
    await page.click('#turn [data-value="callers"]');
  },

  async 'a range restricts table and flame graph to what happened in it'() {
    const box = await chartBox();
    await page.mouse.move(box.x + box.width * 0.2, box.y + 60);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.3, box.y + 60, {steps: 4});
    await page.mouse.move(box.x + box.width * 0.5, box.y + 60, {steps: 4});
    await page.mouse.up();
    await page.waitForFunction(() => window.heapReport.state.get('range'));
    await settled(page);
    const times = await page.evaluate(
        () => window.heapReport.state.get('range').map(
            (step) => window.heapReport.measures.timeOfStep(step)));
    const [from, to] = logFigures(log, times).moments;
    const end = logFigures(log).totals.durationNs;
    assert(Math.abs(from.time / end - 0.2) < 0.05, `from ${from.time / end}`);
    assert(Math.abs(to.time / end - 0.5) < 0.05, `to ${to.time / end}`);
    await showAllRows();
    assert.strictEqual(
        sum(await column('allocations')), to.allocations - from.allocations);
    assert.strictEqual(
        sum(await column('temporary')), to.temporary - from.temporary);
    assert.match(await text('#where-range'), /^from .* to /);
    await setState({metric: 'allocations'});
    assert.strictEqual(
        await page.evaluate(
            () => window.heapReport.views.flame.tree().nodes[0].value),
        to.allocations - from.allocations);
    await page.keyboard.press('Escape');
    await settled(page);
    assert.strictEqual(await state('range'), null);
    await setState({metric: 'atPeak'});
  },

  async 'charts zoom by the wheel and back, and by events'() {
    const before = await canvasHash(page, '#memory-chart canvas');
    const box = await chartBox();
    await page.mouse.move(box.x + 200, box.y + 60);
    await page.mouse.wheel(0, -300);
    await page.waitForFunction(() => window.heapReport.views.charts.zoom);
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#memory-chart canvas'),
                          before);
    await page.click('#zoom-out');
    await settled(page);
    assert.strictEqual(await canvasHash(page, '#memory-chart canvas'), before);
    await page.click('#axis [data-value="events"]');
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#memory-chart canvas'),
                          before);
    await page.click('#axis [data-value="time"]');
  },

  async 'a click on a name hides its line, and another shows it'() {
    const before = await canvasHash(page, '#memory-chart canvas');
    const highest = () => page.evaluate(
        () => window.heapReport.views.charts.specs[0].plot.scales.y.max);
    const withAll = await highest();
    for (const key of ['resident', 'mapped']) {
      await page.click(`[data-toggle="${key}"]`);
    }
    await settled(page);
    assert.notStrictEqual(await canvasHash(page, '#memory-chart canvas'),
                          before);
    assert((await highest()) < withAll);
    for (const key of ['resident', 'mapped']) {
      await page.click(`[data-toggle="${key}"]`);
    }
    await page.mouse.move(5, 5);
    await settled(page);
    assert.strictEqual(await canvasHash(page, '#memory-chart canvas'), before);
  },

  async 'nothing moves while the slider does, and nothing is too wide'() {
    for (const size of [{width: 1280, height: 800},
                        {width: 1920, height: 1080},
                        {width: 420, height: 900}]) {
      await page.setViewportSize(size);
      await settled(page);
      const places = new Set();
      for (const step of [0, 5, 300, 700]) {
        await setState({step});
        places.add(JSON.stringify(await page.evaluate(() => [
          'figures', 'memory-chart', 'map-canvas', 'where', 'shapes',
        ].map((id) => {
          const {x, y, width, height} =
              document.getElementById(id).getBoundingClientRect();
          return [x, y + scrollY, width, height];
        }))));
      }
      assert.strictEqual(places.size, 1, [...places].join('\n'));
      const [wanted, width] = await page.evaluate(() => [
        document.documentElement.clientWidth,
        document.documentElement.scrollWidth]);
      assert.strictEqual(width, wanted);
    }
    await page.setViewportSize({width: 1280, height: 800});
  },

  async 'a link leads to the same moment, range and measure'() {
    await setState({step: 77, range: [3, 9], metric: 'bytes', mode: 'site'});
    await page.waitForFunction(() => location.hash.includes('step=77'));
    const hash = await page.evaluate(() => location.hash);
    const other = await openReport(browser, report, {hash});
    const values = await other.evaluate(() => window.heapReport.state.values);
    assert.strictEqual(values.step, 77);
    assert.deepStrictEqual(values.range, [3, 9]);
    assert.strictEqual(values.metric, 'bytes');
    assert.strictEqual(values.mode, 'site');
    await other.context().close();
    const broken = await openReport(
        browser, report, {hash: '#step=1e9&range=[5]&metric="no"&mode=%7B'});
    assert.deepStrictEqual(broken.complaints, []);
    await broken.context().close();
    await setState({range: null, metric: 'atPeak', mode: 'fill'});
  },

  async 'the table can be saved'() {
    const [download] = await Promise.all(
        [page.waitForEvent('download'), page.click('#csv')]);
    const lines = fs.readFileSync(await download.path(), 'utf8').split('\n');
    assert.match(lines[0], /^name,where,atPeak,live,now,bytes,allocations/);
    assert(lines.length > 100);
  },

  async 'nothing was complained about in all this'() {
    assert.deepStrictEqual(page.complaints, []);
  },

  async 'dark scheme draws too'() {
    const dark = await openReport(browser, report, {colorScheme: 'dark'});
    assert(await colorCount(dark, '#map-canvas') >= 8);
    const [background] = await dark.evaluate(() => [
      getComputedStyle(document.body).backgroundColor]);
    assert.notStrictEqual(background, await page.evaluate(
        () => getComputedStyle(document.body).backgroundColor));
    assert.deepStrictEqual(dark.complaints, []);
    await dark.context().close();
  },

  async 'hostile names are text and nothing else'() {
    const hostileLog =
        makeLog('hostile', '--events=3000', '--hostile_names');
    const hostile = await openReport(browser, makeReport(hostileLog));
    await hostile.click('#site-table tr.row td.name button');
    await hostile.click('#group [data-value="module"]');
    await hostile.$$eval('details', (all) => all.forEach((one) => {
      one.open = true;
    }));
    await hostile.click('#map-mode [data-value="thread"]');
    await hostile.click('#flame-canvas', {position: {x: 50, y: 27}});
    await settled(hostile);
    assert.deepStrictEqual(hostile.complaints, []);
    assert.strictEqual(await hostile.$('img, main b > b, body > b'), null);
    assert.strictEqual((await hostile.$$('script')).length, 2);
    assert((await hostile.textContent('#command')).includes(
        '</script><script>alert(2)</script>'));
    assert((await hostile.textContent('#modules')).includes(
        '<img src=x onerror=alert(1)>'));
    assert((await hostile.textContent('#threads')).includes('</script><b>'));
    await hostile.context().close();
  },

  async 'a cut log shows what came before the cut, and says so'() {
    const whole = fs.readFileSync(log);
    const cutLog = log.replace('plain', 'cut');
    fs.writeFileSync(cutLog, whole.subarray(0, whole.length * 0.6));
    const cut = await openReport(browser, makeReport(cutLog, 2));
    assert.strictEqual(await cut.textContent('#status'), 'log damaged or cut');
    assert.match(await cut.textContent('#messages'), /not whole: byte \d+/);
    const {totals} = logFigures(cutLog);
    assert.strictEqual(totals.whole, false);
    const shown = await cut.evaluate(() => window.heapReport.report.totals);
    for (const name of ['events', 'allocations', 'liveBytes',
                        'peakLiveBytes']) {
      assert.strictEqual(shown[name], totals[name], name);
    }
    assert.deepStrictEqual(cut.complaints, []);
    await cut.context().close();
  },

  async 'a log of one event works'() {
    const tiny = await openReport(
        browser, makeReport(makeLog('tiny', '--events=1', '--live_blocks=1')));
    assert.deepStrictEqual(tiny.complaints, []);
    await tiny.keyboard.press('Home');
    await tiny.keyboard.press('End');
    await settled(tiny);
    assert.deepStrictEqual(tiny.complaints, []);
    await tiny.context().close();
  },
};

async function main() {
  browser = await startBrowser();
  page = await openReport(browser, report);
  const status = await runTests(tests);
  await browser.close();
  return status;
}

main().then((status) => process.exit(status), (error) => {
  console.log(error.stack);
  process.exit(1);
});
