// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Which functions were inlined at an address, from DWARF. Asking libdw for the
// scopes of one address walks the whole compile unit; here the functions of a
// unit are listed once, and only the one that holds the address is walked.

#ifndef MY_ALLOC_VIZ_INLINED_FUNCTIONS_H_
#define MY_ALLOC_VIZ_INLINED_FUNCTIONS_H_

#include <elfutils/libdwfl.h>

#include <cstdint>
#include <map>
#include <vector>

namespace viz {

struct CodeLine;

class InlinedFunctions {
 public:
  // `lines` holds one entry: the ELF function that holds `address`, and the
  // source line of it. Afterwards it holds the inlined functions too, innermost
  // first. Without DWARF it stays as it is.
  void Expand(Dwfl_Module *module, uint64_t address,
              std::vector<CodeLine> *lines);

 private:
  struct Function {
    uint64_t low;
    uint64_t high;
    Dwarf_Off die;
  };

  // Returns the function of `unit` that holds `address`, or nullptr.
  const Function *FindFunction(Dwarf_Die *unit, uint64_t address);

  std::map<Dwarf_Off, std::vector<Function>> functions_;  // By unit; sorted.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_INLINED_FUNCTIONS_H_
