// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Frame information that is damaged gives some rule or none; it is never read
// beyond its end. The first two bytes say where the entry is and which address
// of its function is asked for.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "leakcheck/cfi.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 3) {
    return 0;
  }
  const size_t num_bytes = size - 2;
  // Of exactly that size, so that a sanitizer sees a read too far.
  std::unique_ptr<uint8_t[]> section(new uint8_t[num_bytes]);
  memcpy(section.get(), data + 2, num_bytes);
  const uint8_t *end = section.get() + num_bytes;
  const uint8_t *fde = section.get() + data[0] % num_bytes;
  for (uintptr_t start : {uintptr_t{0}, uintptr_t{0x10000}}) {
    const cfi_rule_t rule =
        cfi_rule_from_fde(fde, section.get(), end, start + data[1]);
    if (rule.kind > CFI_NO_TABLE || cfi_rule_rbp_place(rule) > CFI_AT_RBP ||
        cfi_rule_rbx_place(rule) > CFI_AT_RBP) {
      abort();
    }
  }
  return 0;
}
