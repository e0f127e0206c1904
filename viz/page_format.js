// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Numbers as people read them, and the few helpers for elements that all views
// share. Text from the log reaches the document only as text nodes and
// attribute values, never as markup.

const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

// Three significant digits: 999 B, 1.21 KiB, 12.1 KiB, 121 KiB.
function threeDigits(value) {
  if (value >= 99.95) {
    return String(Math.round(value));
  }
  return value.toFixed(value >= 9.995 ? 1 : 2);
}

function formatBytes(bytes) {
  const sign = bytes < 0 ? '\u2212' : '';
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1023.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    ++unit;
  }
  const digits = unit === 0 ? String(Math.round(value)) : threeDigits(value);
  return `${sign}${digits}\u00a0${BYTE_UNITS[unit]}`;
}

// 1234567 as 1,234,567.
function formatCount(count) {
  return Math.round(count).toLocaleString('en-US');
}

// 1234567 as 1.23 M.
function formatShortCount(count) {
  const units = ['', '\u00a0k', '\u00a0M', '\u00a0G', '\u00a0T'];
  let value = Math.abs(count);
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    ++unit;
  }
  const digits = unit === 0 ? String(Math.round(value)) : threeDigits(value);
  return (count < 0 ? '\u2212' : '') + digits + units[unit];
}

function formatTime(ns) {
  if (ns < 1e3) {
    return `${Math.round(ns)}\u00a0ns`;
  }
  if (ns < 1e6) {
    return `${threeDigits(ns / 1e3)}\u00a0µs`;
  }
  if (ns < 1e9) {
    return `${threeDigits(ns / 1e6)}\u00a0ms`;
  }
  if (ns < 60e9) {
    return `${threeDigits(ns / 1e9)}\u00a0s`;
  }
  const seconds = Math.round(ns / 1e9);
  const parts = [Math.floor(seconds / 60) % 60, seconds % 60];
  if (seconds >= 3600) {
    parts.unshift(Math.floor(seconds / 3600));
  }
  return parts.map((part, i) => i === 0 ? String(part)
                                        : String(part).padStart(2, '0'))
      .join(':') + (seconds >= 3600 ? '\u00a0h' : '\u00a0min');
}

// A moment on a scale of `durationNs`, as fine as `stepNs`, or else a
// hundred-thousandth of the scale.
function formatMoment(ns, durationNs, stepNs = durationNs / 1e5) {
  const units = [[1e9, 's'], [1e6, 'ms'], [1e3, 'µs'], [1, 'ns']];
  const [scale, name] =
      units.find(([size]) => durationNs >= size) || units[3];
  const digits = Math.ceil(-Math.log10(stepNs / scale) - 1e-6);
  const shown = Math.min(scale === 1 ? 0 : 9, Math.max(0, digits));
  return `${(ns / scale).toFixed(shown)}\u00a0${name}`;
}

// Without zeros that say nothing: for round numbers.
function trimZeros(text) {
  return text.replace(/\.0+(?=\D)|(\.\d*[1-9])0+(?=\D)/, '$1');
}

function formatPercent(part, whole) {
  if (whole === 0) {
    return '\u2013';
  }
  const percent = 100 * part / whole;
  return `${percent !== 0 && percent < 9.95 ? percent.toFixed(1)
                                            : Math.round(percent)}\u00a0%`;
}

// `address`: a BigInt.
function formatAddress(address) {
  return `0x${address.toString(16)}`;
}

function baseName(path) {
  return path.slice(path.lastIndexOf('/') + 1) || path;
}

// Makes an element: element('p', {class: 'hint', title: 'x'}, 'text', child).
// Attributes that are functions become listeners; false and null are left out.
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === 'function') {
      made.addEventListener(name, value);
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value === true ? '' : value);
    }
  }
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

// A choice of one: buttons in a row. `options` is a list of [value, label,
// title]. Returns an object whose show(value) presses a button.
function segmentedControl(parent, label, options, choose) {
  parent.setAttribute('role', 'radiogroup');
  parent.setAttribute('aria-label', label);
  const buttons = options.map(([value, text, title]) => element(
      'button', {type: 'button', role: 'radio', 'data-value': value,
                 title: title || null, click: () => choose(value)}, text));
  parent.replaceChildren(...buttons);
  parent.addEventListener('keydown', (event) => {
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const at = buttons.indexOf(document.activeElement);
    if (by && at >= 0) {
      const next = buttons[(at + by + buttons.length) % buttons.length];
      next.focus();
      next.click();
      event.preventDefault();
      event.stopPropagation();
    }
  });
  return {
    show(value) {
      for (const button of buttons) {
        const on = button.dataset.value === value;
        button.setAttribute('aria-checked', on ? 'true' : 'false');
        button.tabIndex = on ? 0 : -1;
      }
    },
  };
}

// One tooltip for all canvases. `lines` are strings or elements.
const tooltip = {
  show(x, y, lines) {
    const box = byId('tooltip');
    box.replaceChildren(...lines.map(
        (line) => typeof line === 'string' ? element('div', null, line)
                                           : line));
    box.hidden = false;
    const {width, height} = box.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? x - width - 10 : x + 14;
    const top = y + 16 + height > innerHeight ? y - height - 10 : y + 16;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, top)}px`;
  },
  hide() {
    byId('tooltip').hidden = true;
  },
};

// Sizes a canvas for the screen's pixels and returns a context in CSS pixels.
// Asking the canvas how large it is costs a layout of the page: who knows says.
function prepareCanvas(canvas, width = canvas.clientWidth,
                       height = canvas.clientHeight) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.round(width * ratio);
  const h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return {context, width, height, ratio};
}

// The page's colours, which change with the colour scheme. Asking for a style
// makes the browser compute all of them, so answers are kept.
const themeColors = new Map();
const darkScheme = matchMedia('(prefers-color-scheme: dark)');

function themeColor(name) {
  if (!themeColors.has(name)) {
    themeColors.set(name, getComputedStyle(document.documentElement)
        .getPropertyValue(`--${name}`).trim());
  }
  return themeColors.get(name);
}

// Calls `listener` when the colours have changed.
function onThemeChange(listener) {
  darkScheme.addEventListener('change', () => {
    themeColors.clear();
    listener();
  });
}

// Calls `draw` at most once a frame.
function onceAFrame(draw) {
  let asked = false;
  return () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        draw();
      });
    }
  };
}
