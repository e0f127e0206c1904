// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The tree that the flame graph shows: all stacks merged by function, from the
// outermost caller down ('callers') or from the allocation site up ('sites').
// Its shape depends on the direction only; its values on measure and range.

class FlameTree {
  constructor(report, turn) {
    this.nodes = [];  // Parents come before children.
    this.slotNode = new Uint32Array(report.slots.node.length);
    this.add(null, {name: 'all', key: '', where: '', kind: 'root'});
    const caches = new Map();
    for (let slot = 0; slot < this.slotNode.length; ++slot) {
      let stack = stackPlaces(report, slot);
      if (turn === 'callers') {
        stack.reverse();
      } else {
        // What the site got its memory through is not looked at.
        const site = report.places[report.sites.place[report.slots.site[slot]]];
        stack = stack.slice(Math.max(0, indexOfSite(stack, site)));
      }
      let node = this.nodes[0];
      for (const place of stack) {
        const key = `${node.index} ${place.key}`;
        let child = caches.get(key);
        if (!child) {
          child = this.add(node, place);
          caches.set(key, child);
        }
        node = child;
      }
      this.slotNode[slot] = node.index;
    }
    this.depth = this.nodes.reduce((d, node) => Math.max(d, node.depth), 0) + 1;
  }

  add(parent, place) {
    const node = {
      index: this.nodes.length,
      parent,
      place,
      depth: parent ? parent.depth + 1 : 0,
      children: [],
      value: 0,
      self: 0,
    };
    this.nodes.push(node);
    if (parent) {
      parent.children.push(node);
    }
    return node;
  }

  setValues(values) {
    for (const node of this.nodes) {
      node.value = node.self = 0;
    }
    this.slotNode.forEach((index, slot) => {
      const value = Math.max(0, values[slot]);
      this.nodes[index].self += value;
      this.nodes[index].value += value;
    });
    for (let i = this.nodes.length - 1; i > 0; --i) {
      this.nodes[i].parent.value += this.nodes[i].value;
    }
    for (const node of this.nodes) {
      node.children.sort((a, b) => b.value - a.value);
    }
  }

  // Marks nodes whose place has the text, and returns the share of the root
  // that is in or below them.
  search(text) {
    const wanted = text.trim().toLowerCase();
    let covered = 0;
    for (const node of this.nodes) {
      const {name, where} = node.place;
      node.found = wanted !== '' &&
          (name.toLowerCase().includes(wanted) ||
           where.toLowerCase().includes(wanted));
      const inside = node.parent !== null && node.parent.inside;
      if (node.found && !inside) {
        covered += node.value;
      }
      node.inside = inside || node.found;
    }
    return covered;
  }
}
