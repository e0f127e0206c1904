// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program is a list of changes to one row: `advance_loc` ends a row, the
// others change the CFA rule or a register's place. Ours keeps four things of a
// row: the CFA rule and the places of rbp, rbx and the return address. It runs
// the CIE's program, remembers that row for `restore`, then the FDE's, and
// stops at the row that holds the address.
//
// Expressions are not evaluated but recognised. Three kinds occur in practice
// outside of signal frames:
//   - the CFA in a procedure linkage table, rsp + 8 or + 16 by the low bits of
//     the address: the address is known here, so it becomes a plain offset;
//   - the CFA of functions that realign the stack, *(rbp + n);
//   - registers saved by such functions, at rbp + n.

#include "leakcheck/cfi_program.h"

#include <assert.h>
#include <string.h>

// DWARF's numbers for x86-64.
enum {
  REG_RBX = 3,
  REG_RBP = 6,
  REG_RSP = 7,
  REG_RETURN_ADDRESS = 16,
};

// Instructions (DW_CFA_*). The first three carry an operand in the low bits.
enum {
  CFA_ADVANCE_LOC = 0x40,
  CFA_OFFSET = 0x80,
  CFA_RESTORE = 0xc0,
  CFA_NOP = 0x00,
  CFA_SET_LOC = 0x01,
  CFA_ADVANCE_LOC1 = 0x02,
  CFA_ADVANCE_LOC2 = 0x03,
  CFA_ADVANCE_LOC4 = 0x04,
  CFA_OFFSET_EXTENDED = 0x05,
  CFA_RESTORE_EXTENDED = 0x06,
  CFA_UNDEFINED = 0x07,
  CFA_SAME_VALUE = 0x08,
  CFA_REGISTER = 0x09,
  CFA_REMEMBER_STATE = 0x0a,
  CFA_RESTORE_STATE = 0x0b,
  CFA_DEF_CFA = 0x0c,
  CFA_DEF_CFA_REGISTER = 0x0d,
  CFA_DEF_CFA_OFFSET = 0x0e,
  CFA_DEF_CFA_EXPRESSION = 0x0f,
  CFA_EXPRESSION = 0x10,
  CFA_OFFSET_EXTENDED_SF = 0x11,
  CFA_DEF_CFA_SF = 0x12,
  CFA_DEF_CFA_OFFSET_SF = 0x13,
  CFA_VAL_OFFSET = 0x14,
  CFA_VAL_OFFSET_SF = 0x15,
  CFA_VAL_EXPRESSION = 0x16,
  CFA_GNU_ARGS_SIZE = 0x2e,
  CFA_GNU_NEGATIVE_OFFSET_EXTENDED = 0x2f,
};

// Operations in expressions (DW_OP_*).
enum {
  OP_DEREF = 0x06,
  OP_BREG0 = 0x70,
};

#define REMEMBER_DEPTH 8

typedef enum place {
  PLACE_SAME = 0,
  PLACE_CFA,        // At CFA + offset.
  PLACE_RBP,        // At rbp + offset.
  PLACE_UNDEFINED,  // No value: for the return address, no caller.
  PLACE_OTHER,      // Something that is not followed.
} place_t;

typedef struct saved_register {
  place_t place;
  int64_t offset;
} saved_register_t;

typedef enum cfa_base {
  CFA_BASE_REGISTER = 0,
  CFA_BASE_DEREF_RBP,
  CFA_BASE_OTHER,
} cfa_base_t;

typedef struct row {
  cfa_base_t base;
  uint64_t cfa_register;
  int64_t cfa_offset;
  saved_register_t rbp;
  saved_register_t rbx;
  saved_register_t return_address;
} row_t;

typedef struct machine {
  row_t row;
  row_t initial;
  row_t remembered[REMEMBER_DEPTH];
  size_t num_remembered;
  const cfi_cie_t *cie;
  uintptr_t address;  // The row wanted.
  uintptr_t location;
  bool done;
  bool failed;
} machine_t;

static saved_register_t *row_register(row_t *row, uint64_t number) {
  switch (number) {
    case REG_RBP:
      return &row->rbp;
    case REG_RBX:
      return &row->rbx;
    case REG_RETURN_ADDRESS:
      return &row->return_address;
    default:
      return NULL;
  }
}

static void set_register(machine_t *machine, uint64_t number, place_t place,
                         int64_t offset) {
  saved_register_t *saved = row_register(&machine->row, number);
  if (saved != NULL) {
    saved->place = place;
    saved->offset = offset;
  }
}

static void restore_register(machine_t *machine, uint64_t number) {
  saved_register_t *saved = row_register(&machine->row, number);
  if (saved != NULL) {
    *saved = *row_register(&machine->initial, number);
  }
}

// An offset in units of the CIE's factor; wraps when it is nonsense.
static int64_t scale(const machine_t *machine, uint64_t factored) {
  return (int64_t)(factored * (uint64_t)machine->cie->data_factor);
}

static void advance(machine_t *machine, uint64_t delta) {
  machine->location += delta * machine->cie->code_factor;
  machine->done = machine->location > machine->address;
}

static void set_cfa(machine_t *machine, uint64_t number, int64_t offset) {
  machine->row.base = CFA_BASE_REGISTER;
  machine->row.cfa_register = number;
  machine->row.cfa_offset = offset;
}

// DW_OP_breg<n> with its offset; false for any other operation.
static bool read_breg(dwarf_cursor_t *cursor, unsigned number,
                      int64_t *out_offset) {
  if (dwarf_read_fixed(cursor, 1) != OP_BREG0 + number) {
    return false;
  }
  *out_offset = dwarf_read_sleb(cursor);
  return !cursor->failed;
}

static void set_cfa_expression(machine_t *machine, dwarf_cursor_t block) {
  // What linkers emit for lazy binding stubs of 16 bytes:
  // breg7 8; breg16 0; lit15; and; lit<n>; ge; lit3; shl; plus
  static const uint8_t plt_head[] = {0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a};
  static const uint8_t plt_tail[] = {0x2a, 0x33, 0x24, 0x22};
  row_t *row = &machine->row;
  size_t num_bytes = (size_t)(block.end - block.at);
  row->base = CFA_BASE_OTHER;
  if (num_bytes == sizeof(plt_head) + 1 + sizeof(plt_tail) &&
      memcmp(block.at, plt_head, sizeof(plt_head)) == 0 &&
      memcmp(block.at + sizeof(plt_head) + 1, plt_tail, sizeof(plt_tail)) ==
          0) {
    uint64_t threshold = (uint64_t)block.at[sizeof(plt_head)] - 0x30;
    // Only a signal handler finds a stub on the stack: the address is exact.
    bool pushed = (machine->address & 15) >= threshold;
    set_cfa(machine, REG_RSP, pushed ? 16 : 8);
    return;
  }
  int64_t offset;
  if (read_breg(&block, REG_RBP, &offset) &&
      dwarf_read_fixed(&block, 1) == OP_DEREF && block.at == block.end) {
    row->base = CFA_BASE_DEREF_RBP;
    row->cfa_offset = offset;
  }
}

static void set_register_expression(machine_t *machine, uint64_t number,
                                    dwarf_cursor_t block) {
  int64_t offset;
  if (read_breg(&block, REG_RBP, &offset) && block.at == block.end) {
    set_register(machine, number, PLACE_RBP, offset);
  } else {
    set_register(machine, number, PLACE_OTHER, 0);
  }
}

static void remember(machine_t *machine) {
  if (machine->num_remembered == REMEMBER_DEPTH) {
    machine->failed = true;
    return;
  }
  machine->remembered[machine->num_remembered++] = machine->row;
}

static void restore_remembered(machine_t *machine) {
  if (machine->num_remembered == 0) {
    machine->failed = true;
    return;
  }
  machine->row = machine->remembered[--machine->num_remembered];
}

// The instructions that say where a register is. False: not one of them.
static bool step_register(machine_t *machine, uint8_t opcode,
                          dwarf_cursor_t *program) {
  uint64_t number = dwarf_read_uleb(program);
  switch (opcode) {
    case CFA_OFFSET_EXTENDED:
      set_register(machine, number, PLACE_CFA,
                   scale(machine, dwarf_read_uleb(program)));
      return true;
    case CFA_OFFSET_EXTENDED_SF:
      set_register(machine, number, PLACE_CFA,
                   scale(machine, (uint64_t)dwarf_read_sleb(program)));
      return true;
    case CFA_GNU_NEGATIVE_OFFSET_EXTENDED:
      set_register(machine, number, PLACE_CFA,
                   scale(machine, -dwarf_read_uleb(program)));
      return true;
    case CFA_RESTORE_EXTENDED:
      restore_register(machine, number);
      return true;
    case CFA_UNDEFINED:
      set_register(machine, number, PLACE_UNDEFINED, 0);
      return true;
    case CFA_SAME_VALUE:
      set_register(machine, number, PLACE_SAME, 0);
      return true;
    case CFA_REGISTER:
    case CFA_VAL_OFFSET:
      (void)dwarf_read_uleb(program);
      set_register(machine, number, PLACE_OTHER, 0);
      return true;
    case CFA_VAL_OFFSET_SF:
      (void)dwarf_read_sleb(program);
      set_register(machine, number, PLACE_OTHER, 0);
      return true;
    case CFA_EXPRESSION:
      set_register_expression(
          machine, number, dwarf_read_block(program, dwarf_read_uleb(program)));
      return true;
    case CFA_VAL_EXPRESSION:
      (void)dwarf_read_block(program, dwarf_read_uleb(program));
      set_register(machine, number, PLACE_OTHER, 0);
      return true;
    default:
      return false;
  }
}

// The instructions that say what the CFA is. False: not one of them.
static bool step_cfa(machine_t *machine, uint8_t opcode,
                     dwarf_cursor_t *program) {
  uint64_t number;
  switch (opcode) {
    case CFA_DEF_CFA:
      number = dwarf_read_uleb(program);
      set_cfa(machine, number, (int64_t)dwarf_read_uleb(program));
      return true;
    case CFA_DEF_CFA_SF:
      number = dwarf_read_uleb(program);
      set_cfa(machine, number,
              scale(machine, (uint64_t)dwarf_read_sleb(program)));
      return true;
    case CFA_DEF_CFA_REGISTER:
      set_cfa(machine, dwarf_read_uleb(program), machine->row.cfa_offset);
      return true;
    case CFA_DEF_CFA_OFFSET:
      machine->row.cfa_offset = (int64_t)dwarf_read_uleb(program);
      return true;
    case CFA_DEF_CFA_OFFSET_SF:
      machine->row.cfa_offset =
          scale(machine, (uint64_t)dwarf_read_sleb(program));
      return true;
    case CFA_DEF_CFA_EXPRESSION:
      set_cfa_expression(machine,
                         dwarf_read_block(program, dwarf_read_uleb(program)));
      return true;
    default:
      return false;
  }
}

static void step_other(machine_t *machine, uint8_t opcode,
                       dwarf_cursor_t *program) {
  switch (opcode) {
    case CFA_NOP:
      break;
    case CFA_SET_LOC:
      machine->location = (uintptr_t)dwarf_read_pointer(
          program, machine->cie->pointer_encoding);
      machine->done = machine->location > machine->address;
      break;
    case CFA_ADVANCE_LOC1:
      advance(machine, dwarf_read_fixed(program, 1));
      break;
    case CFA_ADVANCE_LOC2:
      advance(machine, dwarf_read_fixed(program, 2));
      break;
    case CFA_ADVANCE_LOC4:
      advance(machine, dwarf_read_fixed(program, 4));
      break;
    case CFA_REMEMBER_STATE:
      remember(machine);
      break;
    case CFA_RESTORE_STATE:
      restore_remembered(machine);
      break;
    case CFA_GNU_ARGS_SIZE:
      (void)dwarf_read_uleb(program);
      break;
    default:
      machine->failed = !step_cfa(machine, opcode, program) &&
                        !step_register(machine, opcode, program);
      break;
  }
}

static void run(machine_t *machine, dwarf_cursor_t program) {
  while (program.at < program.end && !machine->done && !machine->failed) {
    uint8_t opcode = (uint8_t)dwarf_read_fixed(&program, 1);
    uint8_t operand = opcode & 0x3f;
    switch (opcode & 0xc0) {
      case CFA_ADVANCE_LOC:
        advance(machine, operand);
        break;
      case CFA_OFFSET:
        set_register(machine, operand, PLACE_CFA,
                     scale(machine, dwarf_read_uleb(&program)));
        break;
      case CFA_RESTORE:
        restore_register(machine, operand);
        break;
      default:
        step_other(machine, opcode, &program);
        break;
    }
  }
  machine->failed |= program.failed;
}

// Stores a register's place in the compact form; false when it does not fit.
static bool compact(saved_register_t saved, int8_t *out_words,
                    cfi_place_t *out_place) {
  int64_t words = saved.offset / 8;
  *out_words = (int8_t)words;
  if (saved.place == PLACE_SAME) {
    *out_place = CFI_SAME;
    return true;
  }
  *out_place = saved.place == PLACE_CFA ? CFI_AT_CFA : CFI_AT_RBP;
  return (saved.place == PLACE_CFA || saved.place == PLACE_RBP) &&
         saved.offset % 8 == 0 && words >= INT8_MIN && words <= INT8_MAX;
}

static cfi_kind_t row_kind(const row_t *row) {
  if (row->base == CFA_BASE_DEREF_RBP) {
    return CFI_CFA_DEREF_RBP;
  }
  if (row->base != CFA_BASE_REGISTER) {
    return CFI_NONE;
  }
  switch (row->cfa_register) {
    case REG_RSP:
      return CFI_CFA_RSP;
    case REG_RBP:
      return CFI_CFA_RBP;
    case REG_RBX:
      return CFI_CFA_RBX;
    default:
      return CFI_NONE;
  }
}

static cfi_rule_t rule_from_row(const row_t *row) {
  cfi_rule_t rule = {.kind = CFI_NONE};
  cfi_rule_t none = rule;
  if (row->return_address.place == PLACE_UNDEFINED) {
    rule.kind = CFI_OUTERMOST;
    return rule;
  }
  if (row->return_address.place != PLACE_CFA ||
      row->return_address.offset != -8) {
    return none;
  }
  cfi_place_t rbp_place;
  cfi_place_t rbx_place;
  if (!compact(row->rbp, &rule.rbp_words, &rbp_place) ||
      !compact(row->rbx, &rule.rbx_words, &rbx_place) ||
      row->cfa_offset < INT32_MIN || row->cfa_offset > INT32_MAX) {
    return none;
  }
  rule.kind = (uint8_t)row_kind(row);
  rule.cfa_offset = (int32_t)row->cfa_offset;
  rule.places = (uint8_t)(rbp_place | rbx_place << 4);
  return rule;
}

cfi_rule_t cfi_program_run(const cfi_cie_t *cie, dwarf_cursor_t program,
                           uintptr_t function_start, uintptr_t address) {
  assert(function_start <= address);
  machine_t machine = {
      .cie = cie, .address = address, .location = function_start};
  run(&machine, cie->program);
  machine.initial = machine.row;
  run(&machine, program);
  cfi_rule_t none = {.kind = CFI_NONE};
  return machine.failed ? none : rule_from_row(&machine.row);
}
