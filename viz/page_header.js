// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What was run, how the log ended, the totals, and the lists of threads and
// modules.

function showProcess(report) {
  const {head, totals} = report;
  const {process, log} = head;
  const name = baseName(process.executable) || 'unknown program';
  document.title = `${name}: heap report`;
  byId('program').textContent = name;
  const command = process.arguments.length > 0
      ? process.arguments.map(shellQuote).join(' ') : process.executable;
  byId('command').textContent = command;
  byId('command').title = command;
  const facts = [
    `pid ${process.pid}`,
    new Date(process.startUnixMs).toLocaleString(),
    `ran ${formatTime(totals.durationNs)}`,
    `${formatCount(totals.events)} events`,
    `log ${baseName(log.path)}, ${formatBytes(log.bytes)}`,
  ];
  byId('facts').textContent = facts.join(' · ');
  const [state, text] = log.error ? ['bad', 'log damaged or cut']
      : !process.cleanEnd ? ['warn', 'no orderly end: killed or still running']
                          : ['good', 'log complete'];
  byId('status').textContent = text;
  byId('status').classList.add(state);
  showMessages(report);
}

function shellQuote(argument) {
  return /^[\w@%+=:,./-]+$/.test(argument)
      ? argument : `'${argument.replaceAll('\'', '\'\\\'\'')}'`;
}

function showMessages(report) {
  const {head, totals} = report;
  const messages = [];
  const count = (n, one, many) =>
      n > 0 && messages.push(`${formatCount(n)} ${n === 1 ? one : many}`);
  if (head.log.error) {
    messages.push(`The log is not whole: ${
        head.log.error}. This report covers the events before that, up to ${
        formatTime(totals.durationNs)}.`);
  }
  count(head.log.lost, 'event was lost: it could not be written.',
        'events were lost: they could not be written.');
  count(totals.unknownFrees, 'free was of a block that the log does not know.',
        'frees were of blocks that the log does not know.');
  count(totals.unknownResizes,
        'resize was of a block that the log does not know.',
        'resizes were of blocks that the log does not know.');
  count(totals.overwrittenBlocks,
        'allocation was where a live block was: its free is missing.',
        'allocations were where live blocks were: their frees are missing.');
  count(totals.nullAllocations, 'allocation was at address 0.',
        'allocations were at address 0.');
  if (!totals.passesAgree) {
    messages.push('The log grew while it was read: the last moments may ' +
                  'differ from the totals.');
  }
  for (const module of head.modules) {
    if (module.state === 'changed') {
      messages.push(`${module.path} is another build than the one that ran: ` +
                    'its functions have no names here.');
    }
  }
  byId('messages').replaceChildren(
      ...messages.map((message) => element('li', null, message)));
  byId('messages').hidden = messages.length === 0;
}

// `jump`: called with the number of events after which something was.
function showFigures(report, jump) {
  const {totals, frames, head} = report;
  const peak = frames.events.indexOf(totals.peakEvents);
  const footprint = frames.footprint[Math.max(peak, 0)];
  const average = totals.allocations > 0
      ? totals.allocatedBytes / totals.allocations : 0;
  const moment = formatTime(totals.peakTimeNs);
  const cards = [
    ['peakLiveBytes', 'Peak live', formatBytes(totals.peakLiveBytes),
     totals.peakLiveBytes,
     `at ${moment}`],
    ['liveBytes', 'Still live at the end', formatBytes(totals.liveBytes),
     totals.liveBytes, `${formatCount(totals.liveBlocks)} blocks`],
    ['allocations', 'Allocations', formatCount(totals.allocations),
     totals.allocations, `${formatBytes(totals.allocatedBytes)} in all`],
    ['frees', 'Frees', formatCount(totals.frees), totals.frees,
     `${formatShortCount(totals.resizes)} resized`],
    ['temporary', 'Temporary',
     formatPercent(totals.temporary, totals.allocations), totals.temporary,
     `${formatCount(totals.temporary)} blocks`],
    ['averageBytes', 'Average size', formatBytes(average), average,
     'as requested'],
    ['fragmentation', 'Fragmentation',
     formatPercent(footprint - totals.peakLiveBytes, footprint),
     footprint > 0 ? 1 - totals.peakLiveBytes / footprint : 0,
     'at the peak'],
    ['peakResidentBytes', 'Peak resident',
     totals.samples > 0 ? formatBytes(totals.peakResidentBytes) : '–',
     totals.peakResidentBytes,
     totals.samples > 0 ? `${formatShortCount(totals.samples)} samples`
                        : 'not sampled'],
    ['threads', 'Threads', formatCount(head.threads.length),
     head.threads.length,
     `${formatShortCount(totals.events / Math.max(totals.durationNs, 1) * 1e9)
       } events/s`],
  ];
  byId('figures').replaceChildren(...cards.map(
      ([name, label, text, value, note]) => element(
          'div', {class: 'figure', 'data-figure': name,
                  'data-value': String(value)},
          element('span', {class: 'label'}, label),
          element('b', null, text),
          element('span', {class: 'note'}, note))));
  const peakCard = byId('figures').firstElementChild;
  peakCard.classList.add('link');
  peakCard.tabIndex = 0;
  peakCard.setAttribute('role', 'button');
  peakCard.title = 'Show this moment';
  peakCard.addEventListener('click', jump);
  peakCard.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') {
      jump();
    }
  });
}

function simpleTable(headings, rows) {
  return element(
      'table', {class: 'simple'},
      element('thead', null, element(
          'tr', null, ...headings.map(
              (heading) => element('th', {scope: 'col'}, heading)))),
      element('tbody', null, ...rows.map((row) => element(
          'tr', null, ...row.map((cell) => element('td', null, cell))))));
}

function showDetails(report) {
  const {head, totals} = report;
  byId('threads').replaceChildren(simpleTable(
      ['Thread', 'From', 'To', 'Allocations'],
      [...head.threads].sort((a, b) => b.allocations - a.allocations)
          .slice(0, 500)
          .map((thread) => [
            threadName(thread),
            formatMoment(thread.startNs, totals.durationNs),
            thread.endNs === undefined
                ? 'the end' : formatMoment(thread.endNs, totals.durationNs),
            formatCount(thread.allocations),
          ])));
  const states = {
    found: 'names found',
    unreadable: 'file not readable here',
    changed: 'replaced since by another build',
    unused: '',
  };
  byId('modules').replaceChildren(simpleTable(
      ['Module', 'Loaded at', 'Names'],
      head.modules.map((module) => [
        module.path, module.start, states[module.state]])));
}
