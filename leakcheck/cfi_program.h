// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The programs in call frame information: from a CIE's and an FDE's
// instructions to the rule in force at one address.

#ifndef MY_ALLOC_LEAKCHECK_CFI_PROGRAM_H_
#define MY_ALLOC_LEAKCHECK_CFI_PROGRAM_H_

#include <stdbool.h>
#include <stdint.h>

#include "leakcheck/cfi.h"
#include "leakcheck/dwarf_cursor.h"

#ifdef __cplusplus
extern "C" {
#endif

// What a common information entry (CIE) says about its functions.
typedef struct cfi_cie {
  uint64_t code_factor;
  int64_t data_factor;
  uint8_t pointer_encoding;
  bool has_augmentation_data;
  bool is_signal_frame;
  dwarf_cursor_t program;
} cfi_cie_t;

// Runs the CIE's program, then `program` from `function_start` up to `address`.
cfi_rule_t cfi_program_run(const cfi_cie_t *cie, dwarf_cursor_t program,
                           uintptr_t function_start, uintptr_t address);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_CFI_PROGRAM_H_
