// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the page's tests share: logs and reports, a browser that may not reach
// any network, and a plain runner.

'use strict';

const assert = require('assert');
const {execFileSync, spawnSync} = require('child_process');
const fs = require('fs');
const path = require('path');
const {pathToFileURL} = require('url');

const {PLAYWRIGHT, VIZ, SYNTHETIC_LOG, LOG_FIGURES, TEST_TMPDIR} = process.env;
const {chromium} = require(PLAYWRIGHT);

// Generous: test machines may be slow, and nothing waits this long when all is
// well.
const TIMEOUT_MS = 120000;

function makeLog(name, ...flags) {
  const log = path.join(TEST_TMPDIR, `${name}.heaplog`);
  execFileSync(SYNTHETIC_LOG, [...flags, log]);
  return log;
}

// Returns the page's path; checks viz's exit code.
function makeReport(log, exitCode = 0) {
  const page = log.replace(/\.heaplog$/, '.html');
  const run = spawnSync(VIZ, ['report', log, '-o', page], {encoding: 'utf8'});
  assert.strictEqual(run.status, exitCode, run.stderr);
  return page;
}

// Figures computed without viz. `moments`: list of time or [time, start, end].
function logFigures(log, moments = []) {
  const texts = moments.map(
      (moment) => Array.isArray(moment) ? moment.join(':') : String(moment));
  return JSON.parse(execFileSync(
      LOG_FIGURES, [log, ...texts], {maxBuffer: 1 << 28, encoding: 'utf8'}));
}

async function startBrowser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    timeout: TIMEOUT_MS,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update',
           '--disable-sync', '--disable-dev-shm-usage'],
  });
}

// Opens a report and waits until it is drawn. `page.complaints` collects what
// must not happen: errors, warnings, dialogs, requests.
async function openReport(browser, file, options = {}) {
  const context = await browser.newContext({
    viewport: {width: 1280, height: 800}, offline: true, acceptDownloads: true,
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT_MS);
  page.complaints = [];
  const url = pathToFileURL(file).href;
  page.on('console', (message) => page.complaints.push(
      `console ${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => page.complaints.push(`error: ${error.stack}`));
  page.on('dialog', (dialog) => {
    page.complaints.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('request', (request) => {
    if (request.url().split('#')[0] !== url) {
      page.complaints.push(`request: ${request.url()}`);
    }
  });
  await page.goto(url + (options.hash || ''));
  await page.waitForSelector('html[data-ready]');
  await settled(page);
  return page;
}

// After whatever was asked to be drawn in the next frame.
function settled(page) {
  return page.evaluate(() => new Promise((done) => requestAnimationFrame(
      () => requestAnimationFrame(done))));
}

// How many different colours a canvas shows.
function colorCount(page, selector) {
  return page.evaluate((s) => {
    const canvas = document.querySelector(s);
    const context = canvas.getContext('2d');
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  }, selector);
}

// Something that differs when what a canvas shows differs.
function canvasHash(page, selector) {
  return page.evaluate(
      (s) => document.querySelector(s).toDataURL(), selector);
}

async function runTests(tests) {
  let failed = 0;
  for (const [name, test] of Object.entries(tests)) {
    const start = Date.now();
    try {
      await test();
      console.log(`ok    ${name} (${Date.now() - start} ms)`);
    } catch (error) {
      ++failed;
      console.log(`FAIL  ${name}\n${error.stack}`);
    }
  }
  console.log(`${Object.keys(tests).length - failed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

module.exports = {
  assert, fs, path, makeLog, makeReport, logFigures, startBrowser, openReport,
  settled, colorCount, canvasHash, runTests,
};
