// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The functions of an ELF file, with those of its separate debug file if there
// is one, to be found by address. libdwfl's own look-up walks all symbols each
// time, which for a compiler's 30,000 symbols is a millisecond an address.

#ifndef MY_ALLOC_VIZ_SYMBOL_TABLE_H_
#define MY_ALLOC_VIZ_SYMBOL_TABLE_H_

#include <elfutils/libdwfl.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace viz {

class SymbolTable {
 public:
  struct Symbol {
    uint64_t start;
    uint64_t size_bytes;  // 0: not said; up to the next one.
    const char *name;     // The module's; as the linker knows it.
    int rank;             // Of names for one address the highest is used.
  };

  // Knows none.
  SymbolTable() = default;

  // `module` must outlive this.
  explicit SymbolTable(Dwfl_Module *module);

  // Returns the function that holds `address`, or nullptr.
  const Symbol *Find(uint64_t address) const;

 private:
  std::vector<Symbol> symbols_;  // By start, then by rank.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SYMBOL_TABLE_H_
