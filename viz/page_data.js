// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Unpacks what the tool put into the page (viz/report_data.h): the head, and
// columns of numbers as typed arrays. Sums that the tool left out, such as
// differences, are undone here, so that views find plain tables.

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(
      new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function decodeBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; ++i) {
    bytes[i] = binary.charCodeAt(i);
  }
  return bytes;
}

// Numbers up to 2^53 are exact; 28 bits at a time, as shifts have only 32.
function decodeVarints(bytes, count) {
  const values = new Float64Array(count);
  let at = 0;
  for (let i = 0; i < count; ++i) {
    let byte = bytes[at++];
    let value = byte & 127;
    let scale = 128;
    while (byte >= 128) {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    }
    values[i] = value;
  }
  return values;
}

function undoZigzag(values) {
  for (let i = 0; i < values.length; ++i) {
    const value = values[i];
    values[i] = value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }
  return values;
}

function undoDeltas(values) {
  undoZigzag(values);
  for (let i = 1; i < values.length; ++i) {
    values[i] += values[i - 1];
  }
  return values;
}

// Column names that hold something other than plain unsigned numbers.
const SIGNED_COLUMNS = new Set([
  'cell.bytes', 'cell.mapped', 'cell.blocks', 'change.live',
]);
const DELTA_COLUMNS = new Set([
  'frame.time', 'frame.events', 'frame.allocations', 'frame.frees',
  'frame.temporary', 'frame.blocks', 'frame.live', 'frame.usable',
  'frame.footprint', 'frame.mapped', 'frame.resident', 'cellFrame.frame',
  'slotFrame.frame', 'kept.slotFrame', 'kept.slot', 'node.place',
  'site.place', 'slot.node', 'slot.site', 'place.offset', 'place.start',
  'place.function', 'place.file', 'place.line',
]);

async function unpackReport(text) {
  const bytes = decodeBase64(text);
  const view = new DataView(bytes.buffer);
  const headEnd = 4 + view.getUint32(0, true);
  const head = JSON.parse(
      new TextDecoder().decode(await inflate(bytes.subarray(4, headEnd))));
  let at = headEnd;
  const columns = {};
  await Promise.all(head.columns.map(async (column) => {
    const packed = bytes.subarray(at, at + column.bytes);
    at += column.bytes;
    const values = decodeVarints(await inflate(packed), column.count);
    if (SIGNED_COLUMNS.has(column.name)) {
      undoZigzag(values);
    } else if (DELTA_COLUMNS.has(column.name)) {
      undoDeltas(values);
    }
    const [table, name] = column.name.split('.');
    columns[table] = columns[table] || {};
    columns[table][name] = values;
  }));
  return buildReport(head, columns);
}

// Puts the empty heap at time 0 before the first frame.
function withOrigin(values) {
  const all = new Float64Array(values.length + 1);
  all.set(values, 1);
  return all;
}

// Frame numbers as the log counts them, as indices with the origin.
function frameIndices(numbers) {
  return withOrigin(numbers).map((number, i) => i === 0 ? 0 : number + 1);
}

// Where each list of changes starts, by index with the origin: the changes of
// step s are those from starts[s] to starts[s + 1].
function changeStarts(counts) {
  const starts = new Uint32Array(counts.length + 2);
  for (let i = 0; i < counts.length; ++i) {
    starts[i + 2] = starts[i + 1] + counts[i];
  }
  return starts;
}

function undoGaps(values, starts) {
  const out = new Uint32Array(values.length);
  for (let step = 0; step + 1 < starts.length; ++step) {
    let last = 0;
    for (let i = starts[step]; i < starts[step + 1]; ++i) {
      last += values[i];
      out[i] = last;
    }
  }
  return out;
}

function buildReport(head, columns) {
  const frames = {};
  for (const [name, values] of Object.entries(columns.frame)) {
    frames[name] = withOrigin(values);
  }
  for (let i = 1; i < frames.live.length; ++i) {
    frames.highest[i] += frames.live[i];
  }
  frames.count = frames.time.length;

  const cellStarts = changeStarts(columns.cellFrame.count);
  const cells = {
    frames: frameIndices(columns.cellFrame.frame),
    starts: cellStarts,
    cell: undoGaps(columns.cell.cell, cellStarts),
    owner: Uint16Array.from(columns.cell.owner),
    bytes: columns.cell.bytes,
    mapped: columns.cell.mapped,
    blocks: columns.cell.blocks,
  };

  const slotStarts = changeStarts(columns.slotFrame.count);
  const changes = {
    frames: frameIndices(columns.slotFrame.frame),
    starts: slotStarts,
    slot: undoGaps(columns.change.slot, slotStarts),
    allocations: columns.change.allocations,
    temporary: columns.change.temporary,
    bytes: columns.change.bytes,
    live: columns.change.live,
  };

  const nodes = {
    place: columns.node.place,
    parent: columns.node.parent.map((distance, i) => i - distance),
  };
  return {
    head,
    totals: head.totals,
    frames,
    cells,
    changes,
    kept: columns.kept,
    nodes,
    sites: columns.site,
    slots: columns.slot,
    histogram: columns.histogram,
    places: buildPlaces(head, columns.place),
    segments: buildSegments(head.layout),
    cellBytes: 2 ** head.layout.cellBits,
  };
}

function buildSegments(layout) {
  let first = 0;
  return layout.segments.map((segment) => {
    const built = {start: BigInt(segment.start), first, cells: segment.cells};
    first += segment.cells;
    return built;
  });
}

// Kinds of places, as in stack_slots.h.
const PLACE_KINDS = ['address', 'root', 'unknown', 'smaller', 'omitted'];
const PLACE_NAMES = {
  root: 'all',
  unknown: '(no stack recorded)',
  smaller: '(smaller ones together)',
  omitted: '(frames left out)',
};

// Each place: what to show, and `key`, which is equal for places of the same
// function.
function buildPlaces(head, columns) {
  const places = [];
  for (let i = 0; i < columns.kind.length; ++i) {
    const kind = PLACE_KINDS[columns.kind[i]];
    const module = columns.module[i] > 0 ? head.modules[columns.module[i] - 1]
                                         : null;
    const start = columns.start[i];
    const place = {
      kind,
      module,
      offset: columns.offset[i],
      name: head.strings[columns.function[i]],
      file: head.strings[columns.file[i]],
      line: columns.line[i],
      outer: columns.outer[i] - 1,
      isNamed: true,
    };
    const hex = (value) => `0x${value.toString(16)}`;
    if (kind !== 'address') {
      place.name = PLACE_NAMES[kind];
    } else if (place.name === '') {
      place.isNamed = false;
      // The number first: it is what tells them apart where room is short.
      place.name = !module ? hex(place.offset)
          : `${hex(start > 0 ? start : place.offset)} (${
                baseName(module.path)})`;
    }
    place.key = `${columns.module[i]} ${place.name}`;
    // Where exactly: file and line, or module and offset.
    place.where = kind !== 'address' ? ''
        : place.file !== '' ? `${place.file}:${place.line}`
        : module ? `${baseName(module.path)}+${hex(place.offset)}` : '';
    places.push(place);
  }
  return places;
}
