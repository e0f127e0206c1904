// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where the functions of an ELF file start, from the sorted table that
// .eh_frame_hdr has for unwinders. Stripped files keep it.

#ifndef MY_ALLOC_VIZ_UNWIND_INDEX_H_
#define MY_ALLOC_VIZ_UNWIND_INDEX_H_

#include <gelf.h>

#include <cstdint>
#include <vector>

namespace viz {

class UnwindIndex {
 public:
  // Knows no function.
  UnwindIndex() = default;

  // Knows none when the file has no such table, or in another than the usual
  // encoding. `elf` need not live on.
  explicit UnwindIndex(Elf *elf);

  // Returns the start of the function that holds `address`, or 0.
  uint64_t FunctionStart(uint64_t address) const;

 private:
  void ReadTable(Elf *elf, const GElf_Phdr &header);

  std::vector<uint64_t> starts_;  // Ascending.
  uint64_t text_end_ = 0;         // No function reaches beyond.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_UNWIND_INDEX_H_
