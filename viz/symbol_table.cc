// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/symbol_table.h"

#include <algorithm>
#include <tuple>

namespace viz {
namespace {

// Functions may lie within others (hand-written assembly), but not many deep.
constexpr int kCandidatesMax = 16;

bool IsFunction(const GElf_Sym &symbol) {
  const int type = GELF_ST_TYPE(symbol.st_info);
  // Assembly does not always say that its labels are functions.
  return type == STT_FUNC || type == STT_GNU_IFUNC || type == STT_NOTYPE;
}

// Of aliases, people know the one that other files may call, and rather
// `malloc` than `__libc_malloc`.
int Rank(const GElf_Sym &symbol, const char *name) {
  const int binding = GELF_ST_BIND(symbol.st_info);
  return (symbol.st_size > 0 ? 8 : 0) +
         (binding == STB_GLOBAL ? 4
          : binding == STB_WEAK ? 2
                                : 0) +
         (name[0] != '_' || name[1] == 'Z' ? 1 : 0);
}

}  // namespace

SymbolTable::SymbolTable(Dwfl_Module *module) {
  const int count = dwfl_module_getsymtab(module);
  for (int i = 1; i < count; ++i) {
    GElf_Sym symbol;
    GElf_Addr address = 0;
    GElf_Word section = 0;
    const char *name = dwfl_module_getsym_info(module, i, &symbol, &address,
                                               &section, nullptr, nullptr);
    if (name == nullptr || name[0] == '\0' || section == SHN_UNDEF ||
        section == SHN_ABS || !IsFunction(symbol)) {
      continue;
    }
    symbols_.push_back({address, symbol.st_size, name, Rank(symbol, name)});
  }
  std::stable_sort(
      symbols_.begin(), symbols_.end(), [](const Symbol &a, const Symbol &b) {
        return std::tie(a.start, a.rank) < std::tie(b.start, b.rank);
      });
}

const SymbolTable::Symbol *SymbolTable::Find(uint64_t address) const {
  auto at = std::upper_bound(
      symbols_.begin(), symbols_.end(), address,
      [](uint64_t a, const Symbol &symbol) { return a < symbol.start; });
  const auto nearest = at;
  for (int i = 0; i < kCandidatesMax && at != symbols_.begin(); ++i) {
    --at;
    if (address - at->start < at->size_bytes) {
      return &*at;
    }
  }
  // One that does not say where it ends, if no other one begins in between.
  return nearest != symbols_.begin() && (nearest - 1)->size_bytes == 0
             ? &*(nearest - 1)
             : nullptr;
}

}  // namespace viz
