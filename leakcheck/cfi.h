// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// cfi: how to get from a function's frame to its caller's, from the call frame
// information (.eh_frame) that compilers put into every x86-64 object.
//
//   cfi_rule_t rule = cfi_rule_find(return_address - 1);
//   if (rule.kind == CFI_CFA_RSP) {
//     cfa = rsp + rule.cfa_offset;  // The return address is at cfa - 8.
//   }
//
// Reads the objects' own mapped tables, found by glibc's `_dl_find_object`,
// which takes no lock and allocates nothing. So a rule may be looked up inside
// malloc, while another thread is in dlopen, and in a signal handler. The
// object that contains the address must stay loaded during the call, as it
// does when the address is on the caller's own stack.
//
// Not a general DWARF interpreter: registers other than rsp, rbp and rbx, and
// expressions other than the few that compilers and linkers emit, give
// `CFI_NONE`.

#ifndef MY_ALLOC_LEAKCHECK_CFI_H_
#define MY_ALLOC_LEAKCHECK_CFI_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// How the canonical frame address (CFA: the stack pointer before the call
// that made this frame) is computed.
typedef enum cfi_kind {
  CFI_NONE = 0,       // There is a table, but it cannot be followed.
  CFI_CFA_RSP,        // rsp + cfa_offset
  CFI_CFA_RBP,        // rbp + cfa_offset
  CFI_CFA_RBX,        // rbx + cfa_offset
  CFI_CFA_DEREF_RBP,  // *(rbp + cfa_offset): functions that realign the stack
  CFI_SIGNAL_FRAME,   // The kernel's: all registers are in a ucontext_t at rsp
  CFI_OUTERMOST,      // No caller: _start, clone.
  CFI_NO_TABLE,       // No object or no entry there: generated code.
} cfi_kind_t;

// Where the caller's value of a register is.
typedef enum cfi_place {
  CFI_SAME = 0,  // Still in the register.
  CFI_AT_CFA,    // At CFA + 8 * words.
  CFI_AT_RBP,    // At (this frame's) rbp + 8 * words.
} cfi_place_t;

// Eight bytes, so that a cache entry can be published without a lock.
typedef struct cfi_rule {
  int32_t cfa_offset;
  int8_t rbp_words;
  int8_t rbx_words;
  uint8_t kind;    // cfi_kind_t
  uint8_t places;  // cfi_place_t of rbp, and << 4 of rbx.
} cfi_rule_t;

static inline cfi_place_t cfi_rule_rbp_place(cfi_rule_t rule) {
  return (cfi_place_t)(rule.places & 0xf);
}

static inline cfi_place_t cfi_rule_rbx_place(cfi_rule_t rule) {
  return (cfi_place_t)(rule.places >> 4);
}

// Returns the rule in force at the instruction that contains `address`. For a
// return address pass one less, since a call may be a function's last
// instruction.
cfi_rule_t cfi_rule_find(uintptr_t address);

// For tests and fuzzing: runs the frame description entry at `fde` (inside
// readable memory that ends at `end`) up to `address`.
cfi_rule_t cfi_rule_from_fde(const uint8_t *fde, const uint8_t *begin,
                             const uint8_t *end, uintptr_t address);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_CFI_H_
