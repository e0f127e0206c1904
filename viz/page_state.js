// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the user is looking at, in one place. Views listen to the parts they
// show; whoever changes a part does not know who listens.
//
//   step    which of the map's moments is shown: an index of cells.frames
//   range   null, or [from, to]: indices of changes.frames
//   metric  what tables and flame graph measure (page_measures.js)
//   axis    'time' or 'events'
//   mode    what the map's colours mean
//   group   what rows of the table are: 'site', 'function', 'module'
//   turn    flame graph from 'callers' down or from 'sites' up
//   search  what was typed
//
// The state is kept in the address after '#', so that a link to a moment can be
// sent to somebody.

class State {
  constructor(initial) {
    this.values = {...initial};
    this.initial = {...initial};
    this.listeners = new Map();
  }

  get(name) {
    return this.values[name];
  }

  on(names, listener) {
    for (const name of names) {
      this.listeners.set(
          name, [...(this.listeners.get(name) || []), listener]);
    }
  }

  set(changes) {
    const due = new Set();
    for (const [name, value] of Object.entries(changes)) {
      if (JSON.stringify(this.values[name]) !== JSON.stringify(value)) {
        this.values[name] = value;
        for (const listener of this.listeners.get(name) || []) {
          due.add(listener);
        }
      }
    }
    for (const listener of due) {
      listener();
    }
    if (due.size > 0) {
      this.saveSoon();
    }
  }

  saveSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), 250);
  }

  save() {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(this.values)) {
      if (JSON.stringify(value) !== JSON.stringify(this.initial[name])) {
        parameters.set(name, JSON.stringify(value));
      }
    }
    try {
      history.replaceState(null, '', `#${parameters}`);
    } catch (error) {
      // Some browsers forbid it for files; then there are no links.
    }
  }

  // Takes from the address what is there and of the right kind.
  load(hash, isValid) {
    const changes = {};
    for (const [name, text] of new URLSearchParams(hash.slice(1))) {
      let value;
      try {
        value = JSON.parse(text);
      } catch (error) {
        continue;
      }
      if (name in this.values && isValid(name, value)) {
        changes[name] = value;
      }
    }
    this.set(changes);
  }
}
