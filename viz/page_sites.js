// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The table of who allocated. A row is a call site, a function or a module; its
// figures are sums over slots, so they are exact also where small stacks share
// one. A row opens to its call stacks.

const TABLE_MEASURES =
    ['atPeak', 'live', 'now', 'bytes', 'allocations', 'temporary'];
const ROWS_AT_ONCE = 60;
const STACKS_AT_ONCE = 8;
const CURVE_WIDTH = 68;
const CURVE_HEIGHT = 24;
// Every program and thread is called from these (allocation_wrapper.cc).
const BEGINNINGS = /^(_start|__libc_start_\w+|start_thread|(__)?clone3?)$/;

class SiteTable {
  constructor(report, state, measures) {
    this.report = report;
    this.state = state;
    this.measures = measures;
    this.limit = ROWS_AT_ONCE;
    this.open = new Set();
    this.ascending = false;
    this.groups = segmentedControl(
        byId('group'), 'Rows',
        [['site', 'Call sites'], ['function', 'Functions'],
         ['module', 'Modules']],
        (group) => state.set({group}));
    byId('csv').addEventListener('click', () => this.saveCsv());
    state.on(['range', 'metric', 'group', 'search'], () => {
      this.limit = ROWS_AT_ONCE;
      this.draw();
    });
    state.on(['step'], onceAFrame(() => this.followStep()));
    state.on(['axis'], () => this.draw());
    onThemeChange(() => this.draw());
    this.draw();
  }

  // Slots by row: a list of {key, place, slots}.
  rowsOf(group) {
    if (this.grouped && this.grouped.group === group) {
      return this.grouped.rows;
    }
    const {report} = this;
    const rows = new Map();
    report.slots.site.forEach((site, slot) => {
      const place = report.places[report.sites.place[site]];
      const key = group === 'site' ? site
          : group === 'function' ? place.key
          : place.module ? place.module.path : '';
      if (!rows.has(key)) {
        rows.set(key, {key, place, slots: [], text: ''});
      }
      rows.get(key).slots.push(slot);
    });
    const all = [...rows.values()];
    for (const row of all) {
      row.name = group === 'module'
          ? (row.place.module ? baseName(row.place.module.path)
                              : row.place.kind === 'address' ? '(no module)'
                                                             : row.place.name)
          : row.place.name;
      row.where = group === 'site' ? row.place.where
          : row.place.module ? row.place.module.path : '';
      if (group !== 'module' && !row.place.isNamed) {
        row.where += this.namedCaller(row);
      }
    }
    this.grouped = {group, rows: all};
    return all;
  }

  // Whom a function without a name mostly works for: the next one with a name
  // on the row's weightiest stack.
  namedCaller(row) {
    const {slots} = this.report;
    const weight = (slot) => slots.atPeak[slot] * 1e6 + slots.bytes[slot];
    const heaviest = row.slots.reduce(
        (a, b) => weight(b) > weight(a) ? b : a, row.slots[0]);
    const stack = stackPlaces(this.report, heaviest);
    const from = indexOfSite(stack, row.place);
    const caller = stack.slice(from + 1).find(
        (place) => place.kind === 'address' && place.isNamed);
    return from >= 0 && caller && !BEGINNINGS.test(caller.name)
        ? ` ← ${caller.name}` : '';
  }

  // What searching a row looks at: names on all of its stacks.
  searchText(row) {
    if (!row.text) {
      const words = new Set([row.name, row.where]);
      for (const slot of row.slots) {
        for (const place of stackPlaces(this.report, slot)) {
          words.add(place.name).add(place.where);
        }
      }
      row.text = [...words].join('\n').toLowerCase();
    }
    return row.text;
  }

  currentFrame() {
    return this.report.cells.frames[this.state.get('step')];
  }

  // Rows with their figures, in order.
  computeRows() {
    const range = this.state.get('range');
    const search = this.state.get('search').trim().toLowerCase();
    const values = {};
    for (const measure of TABLE_MEASURES) {
      values[measure] =
          this.measures.bySlot(measure, range, this.currentFrame());
    }
    const rows = this.rowsOf(this.state.get('group'))
        .filter((row) => !search || this.searchText(row).includes(search));
    for (const row of rows) {
      row.values = {};
      for (const measure of TABLE_MEASURES) {
        let sum = 0;
        for (const slot of row.slots) {
          sum += values[measure][slot];
        }
        row.values[measure] = sum;
      }
    }
    const used = rows.filter(
        (row) => TABLE_MEASURES.some((measure) => row.values[measure] !== 0));
    const metric = this.state.get('metric');
    const sign = this.ascending ? -1 : 1;
    used.sort((a, b) => sign * (b.values[metric] - a.values[metric]) ||
                        b.values.bytes - a.values.bytes);
    this.totals = {};
    for (const measure of TABLE_MEASURES) {
      this.totals[measure] = sumOf(values[measure]);
    }
    return used;
  }

  draw() {
    this.rows = this.computeRows();
    this.groups.show(this.state.get('group'));
    const shown = this.rows.slice(0, this.limit);
    const body = element('tbody', null, ...shown.flatMap(
        (row) => this.drawRow(row)));
    const more = this.rows.length > shown.length
        ? element('button', {type: 'button', class: 'more', click: () => {
            this.limit *= 4;
            this.draw();
          }}, `Show more of ${formatCount(this.rows.length)}`) : '';
    const box = byId('site-table');
    const {scrollTop} = box;
    const focused = document.activeElement && box.contains(
        document.activeElement) ? document.activeElement.dataset.key : null;
    box.replaceChildren(element(
        'table', null, this.drawHead(), body), more);
    box.scrollTop = scrollTop;
    if (focused) {
      const again = [...box.querySelectorAll('[data-key]')].find(
          (other) => other.dataset.key === focused);
      if (again) {
        again.focus({preventScroll: true});
      }
    }
    byId('site-count').textContent = `${formatCount(this.rows.length)} rows`;
    this.drawCurves(shown);
  }

  // Only one column depends on the moment that the map shows.
  followStep() {
    if (this.state.get('metric') === 'now') {
      this.draw();
      return;
    }
    const values = this.measures.bySlot('now', null, this.currentFrame());
    this.totals.now = sumOf(values);
    this.rows.forEach((row) => {
      row.values.now = row.slots.reduce((sum, slot) => sum + values[slot], 0);
    });
    byId('site-table').querySelectorAll('td[data-measure="now"]')
        .forEach((cell, i) => this.fillCell(cell, this.rows[i], 'now'));
  }

  fillCell(cell, row, measure) {
    const value = row.values[measure];
    const share = this.totals[measure] > 0
        ? Math.max(0, value / this.totals[measure]) : 0;
    cell.dataset.value = String(value);
    cell.title = `${formatCount(value)}, ${
        formatPercent(value, this.totals[measure])} of all`;
    cell.textContent = value === 0 ? '·' : formatMeasure(measure, value);
    cell.style.setProperty('--share', `${100 * share}%`);
  }

  drawHead() {
    const metric = this.state.get('metric');
    const range = this.state.get('range');
    const cells = TABLE_MEASURES.map((measure) => {
      const {label, title, rangeTitle} = MEASURES[measure];
      const sorted = measure === metric;
      const arrow = !sorted ? '' : this.ascending ? ' ▲' : ' ▼';
      return element(
          'th', {class: `number${sorted ? ' sorted' : ''}`, scope: 'col',
                 'aria-sort': !sorted ? 'none'
                     : this.ascending ? 'ascending' : 'descending'},
          element('button', {
            type: 'button', 'data-measure': measure,
            'data-key': `sort ${measure}`, title: range ? rangeTitle : title,
            click: () => this.sortBy(measure),
          }, label + arrow));
    });
    return element('thead', null, element(
        'tr', null, element('th', {scope: 'col', class: 'name'}, 'Where'),
        element('th', {scope: 'col', title: 'Live bytes over the whole run'},
                'Curve'),
        ...cells));
  }

  sortBy(measure) {
    this.ascending =
        measure === this.state.get('metric') ? !this.ascending : false;
    if (measure === this.state.get('metric')) {
      this.draw();
    } else {
      this.state.set({metric: measure});
    }
  }

  drawRow(row) {
    const id = `${this.state.get('group')} ${row.key}`;
    const isOpen = this.open.has(id);
    const metric = this.state.get('metric');
    const cells = TABLE_MEASURES.map((measure) => {
      const cell = element(
          'td', {class: `number${measure === metric ? ' sorted' : ''}`,
                 'data-measure': measure});
      this.fillCell(cell, row, measure);
      return cell;
    });
    const toggle = () => {
      if (isOpen) {
        this.open.delete(id);
      } else {
        this.open.add(id);
      }
      this.draw();
    };
    const made = element(
        'tr', {class: 'row', click: toggle},
        element('td', {class: 'name'}, element(
            'button', {type: 'button', 'data-key': `row ${id}`,
                       'aria-expanded': isOpen ? 'true' : 'false',
                       click: (event) => {
                         event.stopPropagation();
                         toggle();
                       }},
            element('span', {class: row.place.isNamed ? 'function'
                                                      : 'function unnamed',
                             title: row.name}, row.name),
            element('span', {class: 'place', title: row.where}, row.where))),
        element('td', {class: 'curve'}, element('canvas', {
          class: 'curve', 'aria-hidden': 'true'})),
        ...cells);
    return isOpen ? [made, this.drawStacks(row)] : [made];
  }

  drawStacks(row) {
    const metric = this.state.get('metric');
    const values = this.measures.bySlot(
        metric, this.state.get('range'), this.currentFrame());
    const slots = [...row.slots].sort((a, b) => values[b] - values[a]);
    const shown = slots.slice(0, STACKS_AT_ONCE);
    const stacks = shown.map((slot) => {
      const count = this.report.slots.stacks[slot];
      const head = `${formatMeasure(metric, values[slot])} ${
          MEASURES[metric].label.toLowerCase()}${
          count > 1 ? `, ${formatCount(count)} small stacks together` : ''}`;
      return element(
          'div', {class: 'stack'}, element('b', null, head),
          element('ol', null, ...stackPlaces(this.report, slot).map(
              (place) => element(
                  'li', null,
                  element('span', {class: 'function'}, place.name), ' ',
                  element('span', {class: 'place'}, place.where)))));
    });
    if (slots.length > shown.length) {
      stacks.push(element(
          'p', {class: 'hint'},
          `and ${formatCount(slots.length - shown.length)} stacks more`));
    }
    return element('tr', {class: 'stacks'}, element(
        'td', {colspan: String(2 + TABLE_MEASURES.length)}, ...stacks));
  }

  // Live bytes of each row over time, as small areas.
  drawCurves(rows) {
    const canvases = byId('site-table').querySelectorAll('canvas.curve');
    const isTime = this.state.get('axis') === 'time';
    const x = isTime ? this.report.frames.time : this.report.frames.events;
    const end = x[x.length - 1] || 1;
    const color = themeColor('live');
    const {frames} = this.report.changes;
    rows.forEach((row, i) => {
      if (!row.history) {
        row.history = this.measures.history(row.slots);
      }
      const width = CURVE_WIDTH;
      const height = CURVE_HEIGHT;
      const {context} = prepareCanvas(canvases[i], width, height);
      const most = row.history.reduce((a, b) => Math.max(a, b), 1);
      context.fillStyle = color;
      context.beginPath();
      context.moveTo(0, height);
      let before = 0;
      row.history.forEach((value, step) => {
        const at = x[frames[step]] / end * width;
        context.lineTo(at, height - before / most * (height - 1));
        context.lineTo(at, height - value / most * (height - 1));
        before = value;
      });
      context.lineTo(width, height);
      context.fill();
    });
  }

  saveCsv() {
    const quote = (text) => {
      // Spreadsheets take some beginnings for formulas.
      const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return `"${safe.replaceAll('"', '""')}"`;
    };
    const lines = [['name', 'where', ...TABLE_MEASURES].join(',')];
    for (const row of this.rows) {
      lines.push([quote(row.name), quote(row.where),
                  ...TABLE_MEASURES.map((m) => row.values[m])].join(','));
    }
    const url = URL.createObjectURL(
        new Blob([`${lines.join('\n')}\n`], {type: 'text/csv'}));
    element('a', {href: url, download: 'sites.csv'}).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}

function sumOf(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

// Places of a slot's stack, innermost first, inlined functions included.
function stackPlaces(report, slot) {
  const {nodes, places} = report;
  const list = [];
  for (let node = report.slots.node[slot]; node > 0;
       node = nodes.parent[node]) {
    for (let i = nodes.place[node]; i >= 0; i = places[i].outer) {
      list.push(places[i]);
    }
  }
  return list;
}

// Where a site is in a stack, or -1: several addresses of one line of code are
// one site.
function indexOfSite(stack, site) {
  return stack.findIndex(
      (place) => place.key === site.key && place.where === site.where);
}
