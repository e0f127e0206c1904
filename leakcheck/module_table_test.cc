// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/module_table.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/auxv.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Module {
  uint32_t id;
  uintptr_t start;
  uintptr_t end;
  uint64_t bias;
  std::string path;
  std::vector<uint8_t> build_id;
};

class ModuleTableTest : public ::testing::Test {
 protected:
  ModuleTableTest()
      : table_(static_cast<module_table_t *>(calloc(1, sizeof(module_table_t))),
               free) {
    sink_.context = this;
    sink_.loaded = [](void *context, const heaplog_module_t *module) {
      static_cast<ModuleTableTest *>(context)->loaded_.push_back(
          {module->id, module->start_address, module->end_address,
           module->load_bias, module->path,
           std::vector<uint8_t>(module->build_id,
                                module->build_id + module->build_id_bytes)});
    };
    sink_.unloaded = [](void *context, uint32_t id, uintptr_t, uintptr_t) {
      static_cast<ModuleTableTest *>(context)->unloaded_.push_back(id);
    };
  }

  template <typename Pointer>
  void Note(Pointer address) {
    module_table_note(table_.get(), reinterpret_cast<uintptr_t>(address),
                      &sink_);
  }

  static void *OpenPlugin() {
    std::string path = std::string(getenv("TEST_SRCDIR")) + "/" +
                       getenv("TEST_WORKSPACE") +
                       "/leakcheck/libtest_plugin.so";
    void *handle = dlopen(path.c_str(), RTLD_NOW);
    EXPECT_NE(handle, nullptr) << dlerror();
    return handle;
  }

  std::unique_ptr<module_table_t, decltype(&free)> table_;
  module_table_sink_t sink_;
  std::vector<Module> loaded_;
  std::vector<uint32_t> unloaded_;
};

bool EndsWith(const std::string &text, const std::string &end) {
  return text.size() >= end.size() &&
         text.compare(text.size() - end.size(), end.size(), end) == 0;
}

int function_of_this_program() {
  return 1;
}

TEST_F(ModuleTableTest, ProgramIsReportedWithItsPath) {
  Note(&function_of_this_program);
  ASSERT_EQ(loaded_.size(), 1u);
  std::vector<char> self(PATH_MAX + 1);
  ASSERT_NE(realpath("/proc/self/exe", self.data()), nullptr);
  EXPECT_EQ(loaded_[0].path, self.data());
  uintptr_t address = reinterpret_cast<uintptr_t>(&function_of_this_program);
  EXPECT_LE(loaded_[0].start, address);
  EXPECT_GT(loaded_[0].end, address);
}

TEST_F(ModuleTableTest, LibcIsReportedWithItsBuildId) {
  Note(&getenv);  // Not one that a sanitizer's runtime takes over.
  ASSERT_EQ(loaded_.size(), 1u);
  EXPECT_TRUE(EndsWith(loaded_[0].path, "/libc.so.6"));
  EXPECT_EQ(loaded_[0].build_id.size(), 20u);
  EXPECT_EQ(loaded_[0].bias, loaded_[0].start);
}

TEST_F(ModuleTableTest, VdsoIsReportedByTheKernelsName) {
  uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
  if (vdso == 0) {
    return;  // Some emulators have none.
  }
  Note(vdso);
  ASSERT_EQ(loaded_.size(), 1u);
  EXPECT_EQ(loaded_[0].path, "[vdso]");
  EXPECT_EQ(loaded_[0].start, vdso);
}

TEST_F(ModuleTableTest, EachIsReportedOnce) {
  for (int i = 0; i < 3; i++) {
    Note(&getenv);
    Note(&lldiv);
    Note(&function_of_this_program);
  }
  ASSERT_EQ(loaded_.size(), 2u);
  EXPECT_EQ(loaded_[0].id, 1u);
  EXPECT_EQ(loaded_[1].id, 2u);
}

TEST_F(ModuleTableTest, AddressesOutsideOfObjectsAreNotReported) {
  int on_the_stack = 0;
  Note(&on_the_stack);
  Note(uintptr_t{0});
  EXPECT_TRUE(loaded_.empty());
}

TEST_F(ModuleTableTest, SweepReportsWhatWasClosed) {
  void *handle = OpenPlugin();
  Note(&qsort);
  Note(dlsym(handle, "test_plugin_alloc"));
  ASSERT_EQ(loaded_.size(), 2u);
  EXPECT_TRUE(EndsWith(loaded_[1].path, "/libtest_plugin.so"));
  module_table_sweep(table_.get(), &sink_);
  EXPECT_TRUE(unloaded_.empty());
  dlclose(handle);
  module_table_sweep(table_.get(), &sink_);
  EXPECT_EQ(unloaded_, std::vector<uint32_t>{2});
  module_table_sweep(table_.get(), &sink_);
  EXPECT_EQ(unloaded_.size(), 1u);
}

TEST_F(ModuleTableTest, ReloadedObjectIsAnother) {
  void *handle = OpenPlugin();
  Note(dlsym(handle, "test_plugin_alloc"));
  dlclose(handle);
  module_table_sweep(table_.get(), &sink_);
  handle = OpenPlugin();
  Note(dlsym(handle, "test_plugin_alloc"));
  dlclose(handle);
  ASSERT_EQ(loaded_.size(), 2u);
  EXPECT_NE(loaded_[0].id, loaded_[1].id);
}

TEST_F(ModuleTableTest, ReplacedObjectIsNoticedWithoutASweep) {
  Note(&qsort);
  // As if something else had been there.
  table_->entries[0].name_hash ^= 1;
  Note(&qsort);
  EXPECT_EQ(unloaded_, std::vector<uint32_t>{1});
  ASSERT_EQ(loaded_.size(), 2u);
  EXPECT_EQ(loaded_[1].id, 2u);
  Note(&qsort);
  EXPECT_EQ(loaded_.size(), 2u);
}

TEST_F(ModuleTableTest, FullTableIgnoresMore) {
  table_->num_entries = MODULE_TABLE_CAPACITY;
  for (module_table_entry_t &entry : table_->entries) {
    entry = {1, 2, nullptr, 0, 1};  // Overlaps nothing.
  }
  Note(&qsort);
  EXPECT_TRUE(loaded_.empty());
  table_->entries[77] = {};
  Note(&qsort);
  EXPECT_EQ(loaded_.size(), 1u);
}

TEST_F(ModuleTableTest, ThreadsReportEachOnce) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([this] {
      for (int round = 0; round < 100; round++) {
        Note(&qsort);
        Note(&function_of_this_program);
        module_table_sweep(table_.get(), &sink_);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(loaded_.size(), 2u);
  EXPECT_TRUE(unloaded_.empty());
}

}  // namespace
