// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Names the functions of this very program, and of files that are not what the
// log says.

#include "viz/symbolizer.h"

#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "viz/demangle.h"

namespace viz_symbolizer_test {

// The address that a call made in here returns to.
__attribute__((noinline)) uint64_t AddressInHere() {
  asm volatile("");
  return reinterpret_cast<uint64_t>(&AddressInHere) + 5;
}

}  // namespace viz_symbolizer_test

namespace viz {
namespace {

// The program's own module, as a recorder would log it.
Module OwnModule() {
  Module module;
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  module.path.assign(path, static_cast<size_t>(length));
  dl_iterate_phdr(
      [](struct dl_phdr_info *info, size_t, void *out) {
        auto *own = static_cast<Module *>(out);
        own->load_bias = info->dlpi_addr;
        own->start_address = UINT64_MAX;
        for (size_t i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr) &header = info->dlpi_phdr[i];
          if (header.p_type == PT_LOAD) {
            const uint64_t start = info->dlpi_addr + header.p_vaddr;
            own->start_address = std::min(own->start_address, start);
            own->end_address =
                std::max(own->end_address, start + header.p_memsz);
          }
        }
        return 1;  // The program comes first.
      },
      &module);
  return module;
}

std::string TemporaryPath(const std::string &name) {
  return std::string(getenv("TEST_TMPDIR")) + "/" + name;
}

TEST(DemangleTest, NamesAreForPeople) {
  EXPECT_EQ(Demangle("_ZN3foo3barEi"), "foo::bar(int)");
  EXPECT_EQ(Demangle("main"), "main");
  EXPECT_EQ(Demangle("memcpy@@GLIBC_2.14"), "memcpy");
  EXPECT_EQ(Demangle("_Zgarbage"), "_Zgarbage");
  EXPECT_EQ(Demangle(""), "");
  EXPECT_EQ(Demangle("_ZNSt6vectorIiSaIiEE6resizeEm"),
            "std::vector<int>::resize(unsigned long)");
}

TEST(DemangleTest, DefaultsOfTemplatesAreLeftOut) {
  const std::string string =
      "std::__cxx11::basic_string<char, std::char_traits<char>, "
      "std::allocator<char> >";
  EXPECT_EQ(ShortenName(string + "::append(char const*)"),
            "std::string::append(char const*)");
  EXPECT_EQ(
      ShortenName("std::map<int, " + string +
                  ", std::less<int>, std::allocator<std::pair<int const, " +
                  string + " > > >::at(int const&)"),
      "std::map<int, std::string>::at(int const&)");
  EXPECT_EQ(ShortenName("std::unique_ptr<Job, std::default_delete<Job> >"),
            "std::unique_ptr<Job>");
  EXPECT_EQ(ShortenName("std::queue<int, std::deque<int, "
                        "std::allocator<int> > >::pop()"),
            "std::queue<int>::pop()");
  EXPECT_EQ(ShortenName("a<b<c<d> > >::Name[abi:cxx11]()"),
            "a<b<c<d>>>::Name()");
}

TEST(DemangleTest, WhatIsNoDefaultStays) {
  for (const char *name :
       {"std::allocator<int>::allocate(unsigned long)",
        "f(int, std::allocator<int>, int)", "f(int, std::allocator<int>)",
        "g<std::allocator<int>>()", "std::map<int, int, std::greater<int>>::x",
        "a::operator<(int)", "a::operator->()", "a::operator()(int)",
        "operator<< <int>(int, std::less<int>)", "f<(a)1, b->c>()", "a<",
        "a, std::less<", "x<a, std::less<", ">>", "operator", ""}) {
    EXPECT_EQ(ShortenName(name), name);
  }
}

TEST(SymbolizerTest, NamesAFunctionOfThisProgram) {
  Symbolizer symbolizer({OwnModule()});
  const uint64_t address = viz_symbolizer_test::AddressInHere();
  EXPECT_EQ(symbolizer.ModuleAt(address, 0), 0u);
  const CodePlace place = symbolizer.Resolve(0, address);
  EXPECT_EQ(place.lines.back().function,
            "viz_symbolizer_test::AddressInHere()");
  EXPECT_EQ(place.function_start + symbolizer.modules()[0].load_bias,
            reinterpret_cast<uint64_t>(&viz_symbolizer_test::AddressInHere));
  EXPECT_EQ(symbolizer.state(0), ModuleState::kFound);
}

TEST(SymbolizerTest, FunctionWithoutANameHasAStart) {
  // As `strip` leaves it: the unwind tables stay.
  const std::string stripped = TemporaryPath("stripped");
  const Module own = OwnModule();
  const std::string command = "strip -o " + stripped + " " + own.path;
  ASSERT_EQ(system(command.c_str()), 0);
  Module module = own;
  module.path = stripped;
  Symbolizer symbolizer({module});
  const CodePlace place =
      symbolizer.Resolve(0, viz_symbolizer_test::AddressInHere());
  EXPECT_EQ(place.lines.back().function, "");
  EXPECT_EQ(place.function_start + module.load_bias,
            reinterpret_cast<uint64_t>(&viz_symbolizer_test::AddressInHere));
}

TEST(SymbolizerTest, AnotherBuildIsNotUsed) {
  Module module = OwnModule();
  module.build_id = "not this one";
  Symbolizer symbolizer({module});
  const CodePlace place =
      symbolizer.Resolve(0, viz_symbolizer_test::AddressInHere());
  EXPECT_EQ(place.lines.back().function, "");
  EXPECT_EQ(symbolizer.state(0), ModuleState::kChanged);
}

TEST(SymbolizerTest, PathsThatAreNoElfFilesAreHarmless) {
  const std::string pipe = TemporaryPath("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string text = TemporaryPath("text");
  std::ofstream(text) << "not ELF\n";
  const std::string cut = TemporaryPath("cut");
  std::ofstream(cut) << "\x7f"
                     << "ELF\x02\x01\x01";
  for (const std::string &path :
       {std::string(), std::string("relative"), std::string("/nowhere"),
        std::string("/dev/zero"), std::string("/proc/self"), pipe, text, cut,
        std::string("linux-vdso.so.1")}) {
    Module module;
    module.path = path;
    module.start_address = 0x1000;
    module.end_address = 0x2000;
    Symbolizer symbolizer({module});
    const CodePlace place = symbolizer.Resolve(0, 0x1500);
    EXPECT_EQ(place.lines.size(), 1u) << path;
    EXPECT_EQ(place.lines[0].function, "") << path;
    EXPECT_NE(symbolizer.state(0), ModuleState::kUnused) << path;
  }
}

TEST(SymbolizerTest, ModuleIsTheOneLoadedThen) {
  Module first;
  first.start_address = 0x1000;
  first.end_address = 0x2000;
  first.unload_time_ns = 100;
  Module second = first;
  second.load_time_ns = 200;
  second.unload_time_ns = UINT64_MAX;
  const Symbolizer symbolizer({first, second});
  EXPECT_EQ(symbolizer.ModuleAt(0x1500, 50), 0u);
  EXPECT_EQ(symbolizer.ModuleAt(0x1500, 250), 1u);
  EXPECT_NE(symbolizer.ModuleAt(0x1500, 150), Symbolizer::kNoModule);
  // A return address may be one past the end of its module, not its start.
  EXPECT_NE(symbolizer.ModuleAt(0x2000, 50), Symbolizer::kNoModule);
  EXPECT_EQ(symbolizer.ModuleAt(0x1000, 50), Symbolizer::kNoModule);
  EXPECT_EQ(symbolizer.ModuleAt(0, 50), Symbolizer::kNoModule);
}

TEST(SymbolizerTest, NoModuleIsNoName) {
  Symbolizer symbolizer({});
  EXPECT_EQ(symbolizer.Resolve(Symbolizer::kNoModule, 0x1234).lines[0].function,
            "");
}

}  // namespace
}  // namespace viz
