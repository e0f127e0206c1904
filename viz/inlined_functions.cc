// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/inlined_functions.h"

#include <dwarf.h>

#include <algorithm>
#include <string>
#include <utility>

#include "viz/demangle.h"
#include "viz/symbolizer.h"

namespace viz {
namespace {

// Damaged debug information may be endless.
constexpr size_t kChildrenMax = 1u << 20;
constexpr size_t kDepthMax = 64;

std::string NameOf(Dwarf_Die *die) {
  Dwarf_Attribute memory;
  for (const unsigned name : {DW_AT_linkage_name, DW_AT_MIPS_linkage_name}) {
    Dwarf_Attribute *attribute = dwarf_attr_integrate(die, name, &memory);
    if (const char *symbol =
            attribute ? dwarf_formstring(attribute) : nullptr) {
      return Demangle(symbol);
    }
  }
  Dwarf_Attribute *attribute = dwarf_attr_integrate(die, DW_AT_name, &memory);
  const char *name = attribute ? dwarf_formstring(attribute) : nullptr;
  return name == nullptr ? "" : name;
}

// Where an inlined function was called from.
CodeLine CallerLine(Dwarf_Die *unit, Dwarf_Die *inlined) {
  CodeLine line;
  Dwarf_Attribute memory;
  Dwarf_Word number = 0;
  if (dwarf_formudata(dwarf_attr(inlined, DW_AT_call_line, &memory), &number) ==
      0) {
    line.line = static_cast<uint32_t>(number);
  }
  Dwarf_Files *files = nullptr;
  size_t count = 0;
  if (dwarf_formudata(dwarf_attr(inlined, DW_AT_call_file, &memory), &number) ==
          0 &&
      dwarf_getsrcfiles(unit, &files, &count) == 0 && number < count) {
    const char *file = dwarf_filesrc(files, number, nullptr, nullptr);
    line.file = file == nullptr ? "" : file;
  }
  return line;
}

// Finds the child scope of `scope` that holds `address`.
bool FindScope(Dwarf_Die *scope, uint64_t address, Dwarf_Die *out) {
  Dwarf_Die child;
  if (dwarf_child(scope, &child) != 0) {
    return false;
  }
  for (size_t i = 0; i < kChildrenMax; ++i) {
    const int tag = dwarf_tag(&child);
    if ((tag == DW_TAG_inlined_subroutine || tag == DW_TAG_lexical_block) &&
        dwarf_haspc(&child, address) > 0) {
      *out = child;
      return true;
    }
    if (dwarf_siblingof(&child, &child) != 0) {
      return false;
    }
  }
  return false;
}

}  // namespace

const InlinedFunctions::Function *InlinedFunctions::FindFunction(
    Dwarf_Die *unit, uint64_t address) {
  const auto [entry, is_new] =
      functions_.insert({dwarf_dieoffset(unit), std::vector<Function>()});
  std::vector<Function> &functions = entry->second;
  Dwarf_Die die;
  if (is_new && dwarf_child(unit, &die) == 0) {
    for (size_t i = 0; i < kChildrenMax; ++i) {
      Dwarf_Addr low = 0;
      Dwarf_Addr high = 0;
      Dwarf_Addr base = 0;
      ptrdiff_t at = 0;
      while (dwarf_tag(&die) == DW_TAG_subprogram &&
             (at = dwarf_ranges(&die, at, &base, &low, &high)) > 0) {
        functions.push_back({low, high, dwarf_dieoffset(&die)});
      }
      if (dwarf_siblingof(&die, &die) != 0) {
        break;
      }
    }
    std::sort(
        functions.begin(), functions.end(),
        [](const Function &a, const Function &b) { return a.low < b.low; });
  }
  const auto after = std::upper_bound(
      functions.begin(), functions.end(), address,
      [](uint64_t a, const Function &function) { return a < function.low; });
  if (after == functions.begin() || address >= (after - 1)->high) {
    return nullptr;
  }
  return &*(after - 1);
}

void InlinedFunctions::Expand(Dwfl_Module *module, uint64_t address,
                              std::vector<CodeLine> *lines) {
  Dwarf_Addr bias = 0;
  Dwarf_Die *unit = dwfl_module_addrdie(module, address, &bias);
  if (unit == nullptr) {
    return;
  }
  const Function *function = FindFunction(unit, address - bias);
  Dwarf_Die scope;
  if (function == nullptr || dwarf_offdie(dwarf_cu_getdwarf(unit->cu),
                                          function->die, &scope) == nullptr) {
    return;
  }
  for (size_t depth = 0;
       depth < kDepthMax && FindScope(&scope, address - bias, &scope);
       ++depth) {
    if (dwarf_tag(&scope) != DW_TAG_inlined_subroutine) {
      continue;
    }
    // The line found is the innermost one's; what was innermost so far stands
    // where it calls this one.
    CodeLine inner = lines->front();
    inner.function = NameOf(&scope);
    const CodeLine call = CallerLine(unit, &scope);
    lines->front().file = call.file;
    lines->front().line = call.line;
    lines->insert(lines->begin(), inner);
  }
}

}  // namespace viz
