// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two steps: find the frame description entry (FDE) of an address, then run
// its little program up to that address.
//
//   _dl_find_object(address) -> .eh_frame_hdr of the object:
//       version | encodings | pointer to .eh_frame | count |
//       (function start, FDE) pairs, sorted: binary search
//   FDE:  length | distance back to its CIE | start, size | program
//   CIE:  length | 0 | version | augmentation | factors | program
//
// Robustness: the tables belong to the program and were mapped with it, so
// they are trusted to be mapped, but every cursor is bounded by the object's
// end and every encoding that is not the usual one is refused, so that a
// damaged table ends a stack instead of the process.

#include "leakcheck/cfi.h"

#include <assert.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

#include "leakcheck/cfi_program.h"
#include "leakcheck/dwarf_cursor.h"

static_assert(sizeof(cfi_rule_t) == 8, "a rule must fit one atomic word");

// DWARF's number for rip's place on x86-64.
#define REG_RETURN_ADDRESS 16

// Opens the entry at `at`: its length field is consumed, the result ends where
// the entry does.
static dwarf_cursor_t open_entry(const uint8_t *at, const uint8_t *end) {
  dwarf_cursor_t cursor = {at, end, false};
  uint64_t length = dwarf_read_fixed(&cursor, 4);
  if (length == 0xffffffff) {
    length = dwarf_read_fixed(&cursor, 8);
  }
  dwarf_cursor_t entry = dwarf_read_block(&cursor, length);
  entry.failed = cursor.failed || length == 0;
  return entry;
}

static bool parse_augmentation(const char *augmentation, dwarf_cursor_t *cursor,
                               cfi_cie_t *out_cie) {
  if (augmentation[0] == '\0') {
    return true;
  }
  if (augmentation[0] != 'z') {
    return false;
  }
  out_cie->has_augmentation_data = true;
  dwarf_cursor_t data = dwarf_read_block(cursor, dwarf_read_uleb(cursor));
  for (const char *letter = augmentation + 1; *letter != '\0'; letter++) {
    if (*letter == 'R') {
      out_cie->pointer_encoding = (uint8_t)dwarf_read_fixed(&data, 1);
    } else if (*letter == 'P') {
      // The personality routine, often indirect: only its size matters.
      uint8_t encoding = (uint8_t)dwarf_read_fixed(&data, 1);
      (void)dwarf_read_format(&data, encoding);
    } else if (*letter == 'L') {
      (void)dwarf_read_fixed(&data, 1);
    } else if (*letter == 'S') {
      out_cie->is_signal_frame = true;
    } else {
      return false;
    }
  }
  return !data.failed;
}

static bool parse_cie(const uint8_t *at, const uint8_t *end,
                      cfi_cie_t *out_cie) {
  dwarf_cursor_t cursor = open_entry(at, end);
  if (dwarf_read_fixed(&cursor, 4) != 0) {
    return false;
  }
  uint64_t version = dwarf_read_fixed(&cursor, 1);
  if (version != 1 && version != 3) {
    return false;
  }
  const char *augmentation = (const char *)cursor.at;
  const uint8_t *nul =
      memchr(cursor.at, '\0', (size_t)(cursor.end - cursor.at));
  if (nul == NULL) {
    return false;
  }
  cursor.at = nul + 1;
  out_cie->code_factor = dwarf_read_uleb(&cursor);
  out_cie->data_factor = dwarf_read_sleb(&cursor);
  uint64_t return_register =
      version == 1 ? dwarf_read_fixed(&cursor, 1) : dwarf_read_uleb(&cursor);
  if (return_register != REG_RETURN_ADDRESS ||
      !parse_augmentation(augmentation, &cursor, out_cie)) {
    return false;
  }
  out_cie->program = cursor;
  return !cursor.failed;
}

cfi_rule_t cfi_rule_from_fde(const uint8_t *fde, const uint8_t *begin,
                             const uint8_t *end, uintptr_t address) {
  cfi_rule_t rule = {.kind = CFI_NONE};
  dwarf_cursor_t entry = open_entry(fde, end);
  const uint8_t *cie_field = entry.at;
  uint64_t cie_distance = dwarf_read_fixed(&entry, 4);
  if (entry.failed || cie_distance == 0 ||
      cie_distance > (uint64_t)(cie_field - begin)) {
    return rule;
  }
  cfi_cie_t cie = {.pointer_encoding = DWARF_PE_ABSPTR};
  if (!parse_cie(cie_field - cie_distance, end, &cie)) {
    return rule;
  }
  uint64_t start = dwarf_read_pointer(&entry, cie.pointer_encoding);
  uint64_t num_bytes = dwarf_read_format(&entry, cie.pointer_encoding & 0x0f);
  if (entry.failed || address < start || address - start >= num_bytes) {
    // Between functions: the table has nothing to say.
    rule.kind = entry.failed ? CFI_NONE : CFI_NO_TABLE;
    return rule;
  }
  if (cie.is_signal_frame) {
    rule.kind = CFI_SIGNAL_FRAME;
    return rule;
  }
  if (cie.has_augmentation_data) {
    (void)dwarf_read_block(&entry, dwarf_read_uleb(&entry));
  }
  return entry.failed ? rule
                      : cfi_program_run(&cie, entry, (uintptr_t)start, address);
}

// One pair of the sorted table in .eh_frame_hdr, both relative to its start.
typedef struct search_entry {
  int32_t function;
  int32_t fde;
} search_entry_t;

// Returns the entry of the last function that starts at or before `address`,
// NULL when there is none or the table has an unusual form.
static const uint8_t *search_table(const uint8_t *header, const uint8_t *end,
                                   uintptr_t address) {
  dwarf_cursor_t cursor = {header, end, false};
  uint64_t version = dwarf_read_fixed(&cursor, 1);
  uint8_t frame_encoding = (uint8_t)dwarf_read_fixed(&cursor, 1);
  uint8_t count_encoding = (uint8_t)dwarf_read_fixed(&cursor, 1);
  uint8_t table_encoding = (uint8_t)dwarf_read_fixed(&cursor, 1);
  (void)dwarf_read_format(&cursor, frame_encoding);
  uint64_t count = dwarf_read_format(&cursor, count_encoding);
  if (cursor.failed || version != 1 || count == 0 ||
      table_encoding != (DWARF_PE_DATAREL | DWARF_PE_SDATA4) ||
      count > (uint64_t)(end - cursor.at) / sizeof(search_entry_t)) {
    return NULL;
  }
  int64_t wanted = (int64_t)(address - (uintptr_t)header);
  search_entry_t found = {0, 0};
  size_t low = 0;  // Entries below `low` start at or before the address.
  size_t high = (size_t)count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    search_entry_t entry;
    memcpy(&entry, cursor.at + middle * sizeof(entry), sizeof(entry));
    if (entry.function <= wanted) {
      found = entry;
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low == 0 ? NULL : header + found.fde;
}

cfi_rule_t cfi_rule_find(uintptr_t address) {
  cfi_rule_t rule = {.kind = CFI_NO_TABLE};
  struct dl_find_object object;
  // The cast only: the function does not write through its argument.
  if (_dl_find_object((void *)address, &object) != 0 ||
      object.dlfo_eh_frame == NULL) {
    return rule;
  }
  const uint8_t *begin = object.dlfo_map_start;
  const uint8_t *end = object.dlfo_map_end;
  const uint8_t *header = object.dlfo_eh_frame;
  if (header < begin || header >= end) {
    return rule;
  }
  const uint8_t *fde = search_table(header, end, address);
  if (fde == NULL || fde < begin || fde >= end) {
    return rule;
  }
  return cfi_rule_from_fde(fde, begin, end, address);
}
