// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/cfi.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <vector>

namespace {

using Bytes = std::vector<uint8_t>;

void AddU32(Bytes *bytes, uint32_t value) {
  for (int i = 0; i < 4; i++) {
    bytes->push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
}

void AddU64(Bytes *bytes, uint64_t value) {
  AddU32(bytes, static_cast<uint32_t>(value));
  AddU32(bytes, static_cast<uint32_t>(value >> 32));
}

// The length in front, padded with nops.
Bytes Entry(Bytes body) {
  while (body.size() % 4 != 0) {
    body.push_back(0);
  }
  Bytes entry;
  AddU32(&entry, static_cast<uint32_t>(body.size()));
  entry.insert(entry.end(), body.begin(), body.end());
  return entry;
}

constexpr uintptr_t kStart = 0x10000;
constexpr uintptr_t kSize = 0x100;

// What compilers put first: CFA = rsp + 8, return address at CFA - 8.
const Bytes kUsual = {0x0c, 7, 8, 0x90, 1};

// A function of kSize bytes at kStart, with absolute pointers.
class CfiTest : public ::testing::Test {
 protected:
  void Build(Bytes program, Bytes cie_program = kUsual,
             const char *augmentation = "") {
    Bytes cie;
    AddU32(&cie, 0);
    cie.push_back(1);  // version
    for (const char *at = augmentation; *at != '\0'; at++) {
      cie.push_back(static_cast<uint8_t>(*at));
    }
    cie.push_back(0);
    cie.push_back(1);     // code factor
    cie.push_back(0x78);  // data factor -8
    cie.push_back(16);    // return address register
    if (augmentation[0] == 'z') {
      cie.push_back(0);  // no augmentation data
    }
    cie.insert(cie.end(), cie_program.begin(), cie_program.end());
    section_ = Entry(cie);
    fde_offset_ = section_.size();
    Bytes fde;
    AddU32(&fde, static_cast<uint32_t>(fde_offset_ + 4));  // back to the CIE
    AddU64(&fde, kStart);
    AddU64(&fde, kSize);
    if (augmentation[0] == 'z') {
      fde.push_back(0);
    }
    fde.insert(fde.end(), program.begin(), program.end());
    fde = Entry(fde);
    section_.insert(section_.end(), fde.begin(), fde.end());
  }

  cfi_rule_t At(uintptr_t offset) const {
    return cfi_rule_from_fde(section_.data() + fde_offset_, section_.data(),
                             section_.data() + section_.size(),
                             kStart + offset);
  }

  void ExpectCfa(uintptr_t offset, cfi_kind_t kind, int32_t cfa_offset) const {
    SCOPED_TRACE(offset);
    EXPECT_EQ(At(offset).kind, kind);
    EXPECT_EQ(At(offset).cfa_offset, cfa_offset);
  }

  Bytes section_;
  size_t fde_offset_ = 0;
};

TEST_F(CfiTest, RowsBeginWhereAdvanceLocSays) {
  // push rbp; mov rsp, rbp; ...; leave; ret
  Build({0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x02, 0x80, 0x0c, 7, 8});
  ExpectCfa(0, CFI_CFA_RSP, 8);
  EXPECT_EQ(cfi_rule_rbp_place(At(0)), CFI_SAME);
  ExpectCfa(1, CFI_CFA_RSP, 16);
  EXPECT_EQ(cfi_rule_rbp_place(At(1)), CFI_AT_CFA);
  EXPECT_EQ(At(1).rbp_words, -2);
  ExpectCfa(3, CFI_CFA_RSP, 16);
  ExpectCfa(4, CFI_CFA_RBP, 16);
  ExpectCfa(0x83, CFI_CFA_RBP, 16);
  ExpectCfa(0x84, CFI_CFA_RSP, 8);
  ExpectCfa(kSize - 1, CFI_CFA_RSP, 8);
}

TEST_F(CfiTest, OutsideOfTheFunctionThereIsNoTable) {
  Build({});
  EXPECT_EQ(At(kSize).kind, CFI_NO_TABLE);
  EXPECT_EQ(At(static_cast<uintptr_t>(-1)).kind, CFI_NO_TABLE);
}

TEST_F(CfiTest, RestoreStateBringsBackCfaAndRegisters) {
  // In the middle of a function: an early return.
  Build({0x41, 0x0e, 24, 0x83, 3, 0x42, 0x0a, 0x0e, 8, 0xc3, 0x41, 0x0b});
  EXPECT_EQ(cfi_rule_rbx_place(At(2)), CFI_AT_CFA);
  EXPECT_EQ(At(2).rbx_words, -3);
  ExpectCfa(3, CFI_CFA_RSP, 8);
  EXPECT_EQ(cfi_rule_rbx_place(At(3)), CFI_SAME);
  ExpectCfa(4, CFI_CFA_RSP, 24);
  EXPECT_EQ(cfi_rule_rbx_place(At(4)), CFI_AT_CFA);
}

TEST_F(CfiTest, RestoreStateWithoutRememberIsRefused) {
  Build({0x41, 0x0b});
  EXPECT_EQ(At(0).kind, CFI_CFA_RSP);
  EXPECT_EQ(At(1).kind, CFI_NONE);
}

TEST_F(CfiTest, RememberedStatesHaveALimit) {
  Build(Bytes(100, 0x0a));
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, RealignedFramesAreUnderstood) {
  // def_cfa_expression: breg6 -8; deref. rbp and rbx by expressions.
  Build({0x41, 0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0, 0x10, 3, 2, 0x76,
         0x70});
  ExpectCfa(1, CFI_CFA_DEREF_RBP, -8);
  EXPECT_EQ(cfi_rule_rbp_place(At(1)), CFI_AT_RBP);
  EXPECT_EQ(At(1).rbp_words, 0);
  EXPECT_EQ(cfi_rule_rbx_place(At(1)), CFI_AT_RBP);
  EXPECT_EQ(At(1).rbx_words, -2);
}

TEST_F(CfiTest, ProcedureLinkageStubsAreUnderstood) {
  Build({0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22});
  ExpectCfa(0x20, CFI_CFA_RSP, 8);
  ExpectCfa(0x2a, CFI_CFA_RSP, 8);
  ExpectCfa(0x2b, CFI_CFA_RSP, 16);
  ExpectCfa(0x2f, CFI_CFA_RSP, 16);
}

TEST_F(CfiTest, UnknownExpressionsAreNotFollowed) {
  Build({0x0f, 2, 0x77, 8});  // breg7 8, without deref
  EXPECT_EQ(At(0).kind, CFI_NONE);
  Build({0x10, 6, 2, 0x77, 8});  // rbp in relation to rsp
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, OtherRegistersDoNotMatter) {
  // r12 to r15 saved, an expression for r10, args_size.
  Build({0x8c, 2, 0x8d, 3, 0x8e, 4, 0x8f, 5, 0x10, 10, 2, 0x76, 0, 0x2e, 16});
  ExpectCfa(0, CFI_CFA_RSP, 8);
}

TEST_F(CfiTest, CfaInAnotherRegisterIsNotFollowed) {
  Build({0x0c, 10, 0});
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, UndefinedReturnAddressIsTheOutermostFrame) {
  Build({0x07, 16});
  EXPECT_EQ(At(0).kind, CFI_OUTERMOST);
}

TEST_F(CfiTest, ReturnAddressElsewhereIsNotFollowed) {
  Build({0x90, 2});
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, PlacesTooFarAwayAreNotFollowed) {
  Build({0x86, 0x80, 1});  // rbp at CFA - 1024
  EXPECT_EQ(At(0).rbp_words, -128);
  Build({0x86, 0x81, 1});
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, SignalFramesAreToldByTheirAugmentation) {
  Build({}, kUsual, "zS");
  EXPECT_EQ(At(0).kind, CFI_SIGNAL_FRAME);
}

TEST_F(CfiTest, UnknownAugmentationIsRefused) {
  Build({}, kUsual, "zX");
  EXPECT_EQ(At(0).kind, CFI_NONE);
  Build({}, kUsual, "eh");
  EXPECT_EQ(At(0).kind, CFI_NONE);
}

TEST_F(CfiTest, EveryTruncationIsSurvived) {
  Build({0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x10, 3, 2, 0x76, 0x70});
  for (size_t size = 0; size < section_.size(); size++) {
    // A copy of exactly that size, so that a sanitizer sees a read too far.
    Bytes copy(section_.begin(),
               section_.begin() + static_cast<ptrdiff_t>(size));
    copy.shrink_to_fit();
    size_t offset = size < fde_offset_ ? 0 : fde_offset_;
    cfi_rule_t rule = cfi_rule_from_fde(copy.data() + offset, copy.data(),
                                        copy.data() + size, kStart);
    EXPECT_EQ(rule.kind, CFI_NONE);
  }
}

// A real object's whole table, through the function that finds rules.
struct Count {
  size_t functions = 0;
  size_t usual = 0;  // CFA = rsp + 8 at the start; not so the cold parts.
  size_t unknown = 0;
};

Count CountFunctions(const void *address_in_object) {
  Count count;
  dl_find_object object;
  EXPECT_EQ(_dl_find_object(const_cast<void *>(address_in_object), &object), 0);
  auto *header = static_cast<const uint8_t *>(object.dlfo_eh_frame);
  uint32_t num_functions;
  memcpy(&num_functions, header + 8, sizeof(num_functions));
  for (uint32_t i = 0; i < num_functions; i++) {
    int32_t offset;
    memcpy(&offset, header + 12 + 8 * size_t{i}, sizeof(offset));
    uintptr_t start = reinterpret_cast<uintptr_t>(header) +
                      static_cast<uintptr_t>(intptr_t{offset});
    cfi_rule_t rule = cfi_rule_find(start);
    count.functions++;
    count.usual += rule.kind == CFI_CFA_RSP && rule.cfa_offset == 8;
    count.unknown += rule.kind == CFI_NONE || rule.kind == CFI_NO_TABLE;
  }
  return count;
}

TEST(CfiFindTest, KnowsTheFunctionsOfLibc) {
  Count count = CountFunctions(reinterpret_cast<const void *>(&qsort));
  EXPECT_GT(count.functions, 1000u);
  EXPECT_GT(count.usual, count.functions * 9 / 10);
  EXPECT_LT(count.unknown, 5u);
}

TEST(CfiFindTest, KnowsTheFunctionsOfThisProgram) {
  Count count = CountFunctions(reinterpret_cast<const void *>(&AddU32));
  EXPECT_GT(count.functions, 100u);
  EXPECT_GT(count.usual, count.functions / 2);
  EXPECT_LT(count.unknown, 5u);
}

TEST(CfiFindTest, OutsideOfObjectsThereIsNoTable) {
  int on_the_stack = 0;
  EXPECT_EQ(cfi_rule_find(reinterpret_cast<uintptr_t>(&on_the_stack)).kind,
            CFI_NO_TABLE);
  EXPECT_EQ(cfi_rule_find(0).kind, CFI_NO_TABLE);
  EXPECT_EQ(cfi_rule_find(UINTPTR_MAX).kind, CFI_NO_TABLE);
}

}  // namespace
