// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/allocation_wrapper.h"

#include "gtest/gtest.h"

namespace viz {
namespace {

TEST(AllocationWrapperTest, KnowsOperatorNewAndAllocators) {
  EXPECT_TRUE(IsAllocationWrapper("operator new(unsigned long)"));
  EXPECT_TRUE(IsAllocationWrapper("malloc"));
  EXPECT_TRUE(IsAllocationWrapper(
      "std::__new_allocator<int>::allocate(unsigned long, void const*)"));
  EXPECT_TRUE(IsAllocationWrapper(
      "std::string::_M_create(unsigned long&, unsigned long)"));
  EXPECT_TRUE(IsAllocationWrapper(
      "std::basic_string<wchar_t>::_M_create(unsigned long&, unsigned long)"));
}

TEST(AllocationWrapperTest, KnowsWidespreadLibraries) {
  for (const char *name :
       {"strdup", "xmalloc", "xrealloc", "g_malloc0", "sqlite3MallocZero",
        "_PyObject_GC_New", "PyMem_RawMalloc"}) {
    EXPECT_TRUE(IsAllocationWrapper(name)) << name;
  }
}

TEST(AllocationWrapperTest, WhoUsesMemoryIsNone) {
  for (const char *name :
       {"main", "malloc_stats", "", "sqlite3BtreeInsert", "xmalloc_init",
        "std::string::append(char const*)", "PyDict_SetItem"}) {
    EXPECT_FALSE(IsAllocationWrapper(name)) << name;
  }
}

TEST(NoSiteTest, StandardLibraryIsNone) {
  for (const char *name :
       {"malloc", "std::string::append(char const*)",
        "std::vector<int>::_M_default_append(unsigned long)",
        "void std::string::_M_construct<char*>(char*, char*)",
        "int* std::vector<int>::_M_allocate_and_copy<Iterator<int*, "
        "std::vector<int>>>(unsigned long, int)",
        "std::ostream& std::operator<< <std::char_traits<char>>(std::ostream&)",
        "__gnu_cxx::__to_string(int)"}) {
    EXPECT_TRUE(IsNoSite(name)) << name;
  }
}

TEST(NoSiteTest, ProgramsOwnFunctionsAreSites) {
  for (const char *name :
       {"", "main", "Store(std::string const&)", "mystd::f()",
        "std_like::vector<int>::push_back(int)",
        "std::vector<int> Parse<char>(std::string)",
        "(anonymous namespace)::f()",
        "std::string (anonymous namespace)::Join<int>(std::vector<int>)",
        "Matrix operator*<int>(std::vector<int>)"}) {
    EXPECT_FALSE(IsNoSite(name)) << name;
  }
}

TEST(BeginningTest, IsNotMain) {
  EXPECT_TRUE(IsBeginning("_start"));
  EXPECT_TRUE(IsBeginning("__libc_start_call_main"));
  EXPECT_FALSE(IsBeginning("main"));
  EXPECT_FALSE(IsBeginning(""));
}

}  // namespace
}  // namespace viz
