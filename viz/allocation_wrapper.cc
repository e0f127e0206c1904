// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/allocation_wrapper.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace viz {
namespace {

bool StartsWith(const std::string &text, size_t at, const char *beginning) {
  return text.compare(at, strlen(beginning), beginning) == 0;
}

// Where the qualified name of a function starts: behind its return type, which
// the names of templates have.
size_t NameStart(const std::string &function) {
  size_t start = 0;
  size_t depth = 0;
  for (size_t at = 0; at < function.size(); ++at) {
    const char c = function[at];
    if (depth == 0 && (c == '(' || StartsWith(function, at, "operator"))) {
      break;
    }
    if (c == '<' || c == '(') {
      ++depth;
    } else if ((c == '>' || c == ')') && depth > 0) {
      --depth;
    } else if (c == ' ' && depth == 0) {
      start = at + 1;
    }
  }
  return start;
}

}  // namespace

bool IsAllocationWrapper(const std::string &function) {
  static constexpr const char *kBeginnings[] = {
      "operator new",
      "__gnu_cxx::new_allocator<",
      "__gnu_cxx::__alloc_traits<",
      "std::__new_allocator<",
      "std::allocator<",
      "std::allocator_traits<",
      "std::_Vector_base<",
      "std::__allocate_guarded<",
      "std::__detail::_Hashtable_alloc<",
      "PyMem_",
      "_PyMem_",
  };
  static constexpr const char *kNames[] = {
      // libc.
      "malloc", "calloc", "realloc", "reallocarray", "aligned_alloc",
      "posix_memalign", "memalign", "strdup", "__strdup", "strndup",
      "__strndup",
      // libiberty, and what most GNU programs have.
      "xmalloc", "xcalloc", "xrealloc", "xstrdup", "xstrndup", "xmemdup",
      // libstdc++'s ABI, GLib, SQLite, CPython.
      "__cxa_allocate_exception", "g_malloc", "g_malloc0", "g_malloc_n",
      "g_malloc0_n", "g_realloc", "g_realloc_n", "g_try_malloc", "g_strdup",
      "g_strndup", "g_slice_alloc", "g_slice_alloc0", "g_memdup2",
      "sqlite3Malloc", "sqlite3MallocZero", "sqlite3DbMallocRaw",
      "sqlite3DbMallocRawNN", "sqlite3DbMallocZero", "sqlite3DbStrDup",
      "sqlite3DbStrNDup", "sqlite3Realloc", "sqlite3DbRealloc",
      "sqlite3_malloc", "sqlite3_malloc64", "sqlite3_realloc",
      "sqlite3_realloc64", "PyObject_Malloc", "PyObject_Calloc",
      "PyObject_Realloc", "_PyObject_New", "_PyObject_NewVar",
      "_PyObject_GC_New", "_PyObject_GC_NewVar", "_PyObject_GC_Resize",
      "PyType_GenericAlloc"};
  for (const char *beginning : kBeginnings) {
    if (StartsWith(function, 0, beginning)) {
      return true;
    }
  }
  if (std::find(std::begin(kNames), std::end(kNames), function) !=
      std::end(kNames)) {
    return true;
  }
  // Of a string's own functions, the one that allocates.
  return StartsWith(function, 0, "std::string::_M_create(") ||
         (StartsWith(function, 0, "std::basic_string<") &&
          function.find(">::_M_create(") != std::string::npos);
}

bool IsBeginning(const std::string &function) {
  static constexpr const char *kNames[] = {"_start",
                                           "__libc_start_main",
                                           "__libc_start_call_main",
                                           "start_thread",
                                           "clone",
                                           "__clone",
                                           "clone3",
                                           "__clone3"};
  return std::find(std::begin(kNames), std::end(kNames), function) !=
         std::end(kNames);
}

bool IsNoSite(const std::string &function) {
  if (IsAllocationWrapper(function)) {
    return true;
  }
  const size_t start = NameStart(function);
  return StartsWith(function, start, "std::") ||
         StartsWith(function, start, "__gnu_cxx::");
}

}  // namespace viz
