// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/stack_slots.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "viz/fake_source.h"

namespace viz {
namespace {

class StackSlotsTest : public ::testing::Test {
 protected:
  // Allocates `bytes` with a stack.
  void Allocate(uint32_t stack_id, uint64_t bytes) {
    heaplog_event_t event = {};
    event.kind = HEAPLOG_ALLOC;
    event.time_ns = events_.size();
    event.address = 0x1000000 + events_.size() * 0x100000;
    event.size_bytes = bytes;
    event.usable_bytes = bytes;
    event.stack_id = stack_id;
    events_.push_back(event);
  }

  StackSlots Build() {
    survey_.Add(events_.data(), events_.size());
    survey_.Finish();
    return StackSlots(
        survey_, source_,
        [this](uint64_t address, uint64_t) { return address == wrapper_; },
        limits_, site_address_);
  }

  // The instruction pointers from a slot's node to the root; 0 for special
  // places.
  static std::vector<uint64_t> Path(const StackSlots &slots, uint32_t slot) {
    std::vector<uint64_t> path;
    for (uint32_t node = slots.slots()[slot].node; node != 0;
         node = slots.nodes()[node].parent) {
      path.push_back(slots.nodes()[node].instruction_pointer);
    }
    return path;
  }

  uint64_t SiteOf(const StackSlots &slots, uint32_t stack_id) {
    return slots.sites()[slots.slots()[slots.SlotOf(stack_id)].site]
        .instruction_pointer;
  }

  std::vector<heaplog_event_t> events_;
  FakeSource source_{{}};
  Survey survey_;
  StackSlotsLimits limits_;
  uint64_t wrapper_ = 0;
  StackSlots::SiteAddress site_address_;
};

TEST_F(StackSlotsTest, EmptyLogHasOnlyTheRootAndTheUnknown) {
  const StackSlots slots = Build();
  EXPECT_EQ(slots.nodes().size(), 2u);
  EXPECT_EQ(slots.nodes()[0].place, Place::kRoot);
  EXPECT_EQ(slots.nodes()[slots.slots()[slots.SlotOf(77)].node].place,
            Place::kUnknown);
}

TEST_F(StackSlotsTest, StacksShareTheNodesOfTheirCallers) {
  source_.SetStack(1, 0, 0x10);
  source_.SetStack(2, 1, 0x20);
  source_.SetStack(3, 1, 0x30);
  Allocate(2, 100);
  Allocate(3, 200);
  const StackSlots slots = Build();
  EXPECT_EQ(Path(slots, slots.SlotOf(2)), (std::vector<uint64_t>{0x20, 0x10}));
  EXPECT_EQ(Path(slots, slots.SlotOf(3)), (std::vector<uint64_t>{0x30, 0x10}));
  EXPECT_EQ(slots.nodes().size(), 5u);  // With the root and the unknown.
  for (uint32_t i = 1; i < slots.nodes().size(); ++i) {
    EXPECT_LT(slots.nodes()[i].parent, i);
  }
}

TEST_F(StackSlotsTest, StackWithoutADefinitionIsUnknown) {
  Allocate(5, 100);
  const StackSlots slots = Build();
  const Slot &slot = slots.slots()[slots.SlotOf(5)];
  EXPECT_EQ(slots.nodes()[slot.node].place, Place::kUnknown);
  EXPECT_EQ(slot.live_bytes, 100u);
}

TEST_F(StackSlotsTest, StackThatWasCutBeginsWithOmittedFrames) {
  source_.SetStack(1, 0, 0);
  source_.SetStack(2, 1, 0x20);
  Allocate(2, 100);
  const StackSlots slots = Build();
  const StackNode &node = slots.nodes()[slots.slots()[slots.SlotOf(2)].node];
  EXPECT_EQ(node.place, Place::kAddress);
  EXPECT_EQ(slots.nodes()[node.parent].place, Place::kOmitted);
}

TEST_F(StackSlotsTest, WrapperByNameGivesTheSiteToItsCaller) {
  wrapper_ = 0x20;
  source_.SetStack(1, 0, 0x10);
  source_.SetStack(2, 1, 0x20);
  Allocate(2, 100);
  const StackSlots slots = Build();
  EXPECT_EQ(SiteOf(slots, 2), 0x10u);
}

TEST_F(StackSlotsTest, OnlyWrappersGiveTheSiteToTheInnermost) {
  wrapper_ = 0x20;
  source_.SetStack(2, 0, 0x20);
  Allocate(2, 100);
  EXPECT_EQ(SiteOf(Build(), 2), 0x20u);
}

TEST_F(StackSlotsTest, FunctionThatEverybodyAllocatesThroughIsAWrapper) {
  // Ten callers, an outer and an inner wrapper.
  for (uint32_t i = 0; i < 10; ++i) {
    source_.SetStack(10 + 3 * i, 0, 0x1000 + i);
    source_.SetStack(11 + 3 * i, 10 + 3 * i, 0x20);
    source_.SetStack(12 + 3 * i, 11 + 3 * i, 0x10);
    Allocate(12 + 3 * i, 100);
  }
  const StackSlots slots = Build();
  for (uint32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(SiteOf(slots, 12 + 3 * i), 0x1000u + i);
  }
}

TEST_F(StackSlotsTest, SiteWithFewCallersStaysASite) {
  for (uint32_t i = 0; i < 5; ++i) {
    source_.SetStack(10 + 2 * i, 0, 0x1000 + i);
    source_.SetStack(11 + 2 * i, 10 + 2 * i, 0x10);
    Allocate(11 + 2 * i, 100);
  }
  EXPECT_EQ(SiteOf(Build(), 11), 0x10u);
}

TEST_F(StackSlotsTest, SitesComeInOrderOfBytesAtThePeak) {
  for (uint32_t i = 1; i <= 20; ++i) {
    source_.SetStack(i, 0, i);
    Allocate(i, i * 100);
  }
  const StackSlots slots = Build();
  EXPECT_EQ(slots.sites()[0].instruction_pointer, 20u);
  EXPECT_EQ(slots.sites()[0].at_peak_bytes, 2000u);
  EXPECT_EQ(slots.sites()[19].instruction_pointer, 1u);
}

TEST_F(StackSlotsTest, AddressesOfOneLineAreOneSite) {
  source_.SetStack(1, 0, 0x10);
  source_.SetStack(2, 1, 0x24);
  source_.SetStack(3, 1, 0x28);
  source_.SetStack(4, 1, 0x30);
  for (uint32_t id = 2; id <= 4; ++id) {
    Allocate(id, 100);
  }
  site_address_ = [](uint64_t address, uint64_t) {
    return address & ~uint64_t{15};
  };
  const StackSlots slots = Build();
  EXPECT_EQ(SiteOf(slots, 2), 0x20u);
  EXPECT_EQ(SiteOf(slots, 3), 0x20u);
  EXPECT_EQ(SiteOf(slots, 4), 0x30u);
  EXPECT_EQ(slots.sites()[0].at_peak_bytes, 200u);
  // Their stacks stay apart.
  EXPECT_NE(slots.SlotOf(2), slots.SlotOf(3));
}

TEST_F(StackSlotsTest, SmallStacksShareASlotBelowTheirCaller) {
  limits_.stacks = 2;
  source_.SetStack(1, 0, 0x10);
  for (uint32_t i = 2; i <= 11; ++i) {
    source_.SetStack(i, 1, 0x100 * i);
    Allocate(i, i * 1000);
  }
  const StackSlots slots = Build();
  // Kept: 10 and 11. The others hang below their caller, by site.
  EXPECT_EQ(Path(slots, slots.SlotOf(11)),
            (std::vector<uint64_t>{0xb00, 0x10}));
  const Slot &shared = slots.slots()[slots.SlotOf(3)];
  EXPECT_EQ(slots.nodes()[shared.node].place, Place::kSmaller);
  EXPECT_EQ(Path(slots, slots.SlotOf(3)), (std::vector<uint64_t>{0, 0x10}));
  EXPECT_EQ(SiteOf(slots, 3), 0x300u);
  EXPECT_NE(slots.SlotOf(3), slots.SlotOf(4));
}

TEST_F(StackSlotsTest, LimitsBoundEverythingAndKeepTheSums) {
  limits_ = {20, 100, 10, 15, 30};
  uint64_t bytes = 0;
  for (uint32_t i = 1; i <= 2000; ++i) {
    source_.SetStack(i, i / 3, 0x1000 + i);
    Allocate(i, i % 97);
    bytes += i % 97;
  }
  const StackSlots slots = Build();
  EXPECT_LE(slots.sites().size(), 10u + 2);
  EXPECT_LE(slots.slots().size(), 20u + 15 + 20);
  EXPECT_LE(slots.nodes().size(), 100u + 100);
  uint64_t live = 0;
  uint64_t stacks = 0;
  for (const Slot &slot : slots.slots()) {
    live += slot.live_bytes;
    stacks += slot.stacks;
  }
  EXPECT_EQ(live, bytes);
  EXPECT_EQ(stacks, 2000u);
}

TEST_F(StackSlotsTest, SitesStayWhenCallersAreTooMany) {
  limits_.stacks = 1;
  limits_.shared_slots = 1;
  // Ten sites, each with a tenth of all, so that none looks like a wrapper.
  for (uint32_t i = 1; i <= 60; ++i) {
    source_.SetStack(2 * i - 1, 0, 0x1000 + i);
    source_.SetStack(2 * i, 2 * i - 1, 0x2000 + i % 10);
    Allocate(2 * i, 10);
  }
  const StackSlots slots = Build();
  EXPECT_LE(slots.slots().size(), 1u + 1 + 10 + 1);
  uint64_t live_by_site[10] = {};
  for (const Slot &slot : slots.slots()) {
    const Site &site = slots.sites()[slot.site];
    if (site.place == Place::kAddress) {
      live_by_site[site.instruction_pointer - 0x2000] += slot.live_bytes;
    }
  }
  for (const uint64_t live : live_by_site) {
    EXPECT_EQ(live, 60u);
  }
}

TEST_F(StackSlotsTest, DeepStackLosesItsMiddle) {
  limits_.depth = 10;
  for (uint32_t i = 1; i <= 100; ++i) {
    source_.SetStack(i, i - 1, 0x1000 + i);
  }
  Allocate(100, 1);
  const StackSlots slots = Build();
  const std::vector<uint64_t> path = Path(slots, slots.SlotOf(100));
  EXPECT_EQ(path,
            (std::vector<uint64_t>{0x1064, 0x1063, 0x1062, 0x1061, 0x1060, 0,
                                   0x1005, 0x1004, 0x1003, 0x1002, 0x1001}));
}

TEST_F(StackSlotsTest, EndlesslyDeepStacksTakeLittleTime) {
  for (uint32_t i = 1; i <= 200000; ++i) {
    source_.SetStack(i, i - 1, i);
  }
  for (uint32_t i = 199000; i <= 200000; ++i) {
    Allocate(i, 1);
  }
  const StackSlots slots = Build();
  EXPECT_EQ(slots.slots().size(), 1002u);
}

}  // namespace
}  // namespace viz
