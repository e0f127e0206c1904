// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Random damage of the bytes that the library keeps in a region (header, slots,
// records, locks), then every call, in a child with an alarm: no signal, no
// hang. And damage of each kind, one at a time, which `verify` has to name.
//
// 2,000 rounds, or SHMIPC_CORRUPTIONS of them. SHMIPC_TEST_SEED for other
// random numbers.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/event.h"
#include "shmipc/mutex.h"
#include "shmipc/region_internal.h"
#include "shmipc/rwlock.h"
#include "shmipc/semaphore.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kShort = 200000;

struct Board {
  shmipc_mutex_t mutex;
  shmipc_mutex_t held;
  shmipc_rwlock_t rwlock;
  shmipc_rwlock_t read;
  shmipc_semaphore_t semaphore;
  shmipc_event_t event;
  shmipc_condition_t condition;
};

class CorruptionTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  // Few slots and records, so that most damage hits what is in use.
  static void Small(shmipc_region_options_t *options) {
    options->max_processes = 4;
    options->max_threads = 8;
    if (options->backend != SHMIPC_SYSV) {
      options->capacity_bytes = 1 << 20;
    } else {
      options->num_undo_semaphores = 1;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, CorruptionTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

// Every call there is; what they return does not matter.
void CallEverything(shmipc_region_t *region, bool holds) {
  auto *board = static_cast<Board *>(shmipc_region_data(region));
  shmipc_region_info_t info;
  (void)!shmipc_region_info_get(region, &info);
  if (holds) {
    shmipc_mutex_unlock(region, &board->held);
    shmipc_rwlock_unlock(region, &board->read);
  }
  for (shmipc_mutex_t *mutex : {&board->mutex, &board->held}) {
    int status = shmipc_mutex_lock(region, mutex, kShort);
    if (status == -EOWNERDEAD) {
      shmipc_mutex_consistent(region, mutex);
    }
    if (status == 0 || status == -EOWNERDEAD) {
      (void)!shmipc_condition_wait(region, &board->condition, mutex, kShort);
    }
    shmipc_mutex_unlock(region, mutex);
  }
  for (shmipc_rwlock_t *lock : {&board->rwlock, &board->read}) {
    (void)!shmipc_rwlock_read_lock(region, lock, kShort);
    shmipc_rwlock_unlock(region, lock);
    if (shmipc_rwlock_write_lock(region, lock, kShort) == -EOWNERDEAD) {
      shmipc_rwlock_consistent(region, lock);
    }
    shmipc_rwlock_unlock(region, lock);
  }
  shmipc_semaphore_post(region, &board->semaphore);
  (void)!shmipc_semaphore_wait(region, &board->semaphore, kShort);
  shmipc_undo_semaphore_post(region, 0);
  (void)!shmipc_undo_semaphore_wait(region, 0, kShort);
  uint32_t key = shmipc_event_key(&board->event);
  shmipc_event_notify_one(region, &board->event);
  (void)!shmipc_event_wait(region, &board->event, key, kShort);
  shmipc_event_notify_all(region, &board->event);
  shmipc_condition_signal(region, &board->condition);
  shmipc_condition_broadcast(region, &board->condition);
  (void)!shmipc_region_grow(region, 9000);
  (void)shmipc_region_at(region, 8000, 8);
  shmipc_region_recover(region);
}

TEST_P(CorruptionTest, NoCallDiesOrHangs) {
  uint64_t num_rounds = Count("SHMIPC_CORRUPTIONS", 667);
  Watchdog watchdog(static_cast<unsigned int>(120 + num_rounds / 20));
  Shared<std::atomic<uint64_t>> attached;
  const uint64_t seed = Seed();
  uint64_t signals = 0;
  uint64_t hangs = 0;
  for (uint64_t round = 0; round < num_rounds; round++) {
    TestRegion own(GetParam(), sizeof(Board), Small);
    Process child([&] {
      std::mt19937_64 random(seed + round);
      alarm(10);
      shmipc_region_t *region = own.AttachInChild();
      Board *board = own.data<Board>();
      (void)!shmipc_mutex_lock(region, &board->held, kShort);
      (void)!shmipc_rwlock_read_lock(region, &board->read, kShort);
      unsigned char *base = region->base;
      size_t end = region->data_offset + sizeof(Board);
      // Half of the damage goes where something is.
      const size_t places[] = {0,
                               offsetof(shmipc_header_t, ready),
                               offsetof(shmipc_header_t, records_used),
                               SHMIPC_HEADER_BYTES,
                               shmipc_records_offset(region->num_slots),
                               region->data_offset};
      for (uint64_t i = 0; i < 1 + round % 40; i++) {
        size_t where = random() % 2 == 0
                           ? random() % end
                           : places[random() % 6] + random() % 160;
        if (where < end) {
          base[where] ^= static_cast<unsigned char>(1 + random() % 255);
        }
      }
      CallEverything(region, true);
      if (random() % 64 == 0) {
        shmipc_region_verify(region, nullptr, nullptr);
      }
      int status;
      shmipc_region_t *second = own.Attach(&status);
      if (second != nullptr) {
        ++*attached;
        CallEverything(second, false);
        shmipc_region_close(second);
      }
      own.CloseOwn();
      return 0;
    });
    int result = child.Wait();
    hangs += result == -SIGALRM;
    signals += result != 0 && result != -SIGALRM;
    ASSERT_EQ(result, 0) << "round " << round << " of seed " << seed;
    // The creator, too, with the board still damaged.
    CallEverything(own.region(), false);
    // What has no header any more cannot be unlinked by us.
    shmipc_header_of(own.region())->magic = SHMIPC_MAGIC;
    shmipc_header_of(own.region())->ready = SHMIPC_READY;
    memcpy(shmipc_header_of(own.region())->name, own.name().c_str() + 1,
           own.name().size());
  }
  printf("%s: %" PRIu64 " corruptions, %" PRIu64
         " attached all the same, %" PRIu64 " signals, %" PRIu64 " hangs\n",
         NameOf(GetParam()), num_rounds, attached->load(), signals, hangs);
}

// One change of one field; `names` is part of what verify says.
struct Mutation {
  const char *names;
  std::function<void(shmipc_region_t *region, Board *board)> change;
};

TEST_P(CorruptionTest, VerifyNamesEachKindOfDamage) {
  // Our record is the first, our slot too; the held mutex and the read lock are
  // its notes.
  auto record = [](shmipc_region_t *region, uint32_t index = 0) {
    return shmipc_record_of(region, index);
  };
  const std::vector<Mutation> mutations = {
      {"hash that it had",
       [](auto *r, auto *) {
         shmipc_header_of(r)->hash ^= 1;
       }},
      {"field has changed",
       [](auto *r, auto *) {
         shmipc_header_of(r)->magic ^= 1;
       }},
      {"field has changed",
       [](auto *r, auto *) {
         shmipc_header_of(r)->num_slots ^= 8;
       }},
      {"field has changed",
       [](auto *r, auto *) {
         shmipc_header_of(r)->name[3] ^= 1;
       }},
      {"not ready",
       [](auto *r, auto *) {
         shmipc_header_of(r)->ready ^= 1;
       }},
      {"more records used",
       [](auto *r, auto *) {
         shmipc_header_of(r)->records_used = 9;
       }},
      {"not among those used",
       [](auto *r, auto *) {
         shmipc_header_of(r)->records_used = 0;
       }},
      {"our own is not as we left",
       [](auto *r, auto *) {
         shmipc_slot_of(r, 0)->word ^= 1;
       }},
      {"our own is not as we left",
       [](auto *r, auto *) {
         shmipc_slot_of(r, 0)->word ^= 0x100;
       }},
      {"another pid",
       [](auto *r, auto *) {
         shmipc_slot_of(r, 0)->pid ^= 1;
       }},
      {"its process is alive",
       [](auto *r, auto *) {
         shmipc_slot_of(r, 1)->word ^= 1;
       }},
      {"its owner is no slot",
       [&](auto *r, auto *) {
         record(r)->owner = 7;
       }},
      {"its owner is not in its slot",
       [&](auto *r, auto *) {
         record(r)->owner ^= 0x800;
       }},
      {"its owner is not in its slot",
       [&](auto *r, auto *) {
         record(r, 5)->owner = SHMIPC_OWNER(2, 0);
       }},
      {"free, but with a note",
       [&](auto *r, auto *) {
         record(r)->owner = 0;
       }},
      {"free, but with a note",
       [&](auto *r, auto *) {
         record(r, 6)->holds[14] = 1;
       }},
      {"a note of no kind",
       [&](auto *r, auto *) {
         record(r)->holds[0] |= 3;
       }},
      {"outside of the data",
       [&](auto *r, auto *) {
         record(r)->holds[0] = 64 | 1;
       }},
      {"outside of the data",
       [&](auto *r, auto *) {
         record(r)->holds[3] = (uint64_t{1} << 40) | 2;
       }},
      {"its owner has no note",
       [&](auto *r, auto *) {
         record(r)->holds[2] = record(r)->holds[0] ^ SHMIPC_HOLD_KIND;
         record(r)->holds[0] = 0;
       }},
      {"its owner is nobody",
       [&](auto *r, auto *) {
         record(r)->generation ^= 1;
       }},
      {"its owner is nobody",
       [](auto *, auto *b) {
         b->held.word ^= 0x10000;
       }},
      {"its owner is no record",
       [](auto *, auto *b) {
         b->held.word |= 0xff;
       }},
      {"generation without owner",
       [](auto *, auto *b) {
         b->held.word &= ~0xffffu;
         b->held.word |= 0x10000;
       }},
      {"given up, with other bits",
       [](auto *, auto *b) {
         b->held.word = 0x1ffff;
       }},
      {"its owner is no record",
       [](auto *, auto *b) {
         b->read.word = 0x77;
       }},
  };
  for (size_t i = 0; i < mutations.size(); i++) {
    TestRegion own(GetParam(), sizeof(Board), Small);
    shmipc_region_t *region = own.region();
    Board *board = own.data<Board>();
    shmipc_region_t *second = own.Attach();
    // Of a biased one whoever is named says nothing.
    board->held.word = SHMIPC_WORD_SHARED;
    ASSERT_EQ(shmipc_mutex_lock(region, &board->held, 0), 0);
    ASSERT_EQ(shmipc_rwlock_read_lock(region, &board->read, 0), 0);
    ASSERT_EQ(Problems(region), "");
    std::string before(reinterpret_cast<char *>(region->base),
                       region->data_offset + sizeof(Board));
    mutations[i].change(region, board);
    std::string damaged(reinterpret_cast<char *>(region->base), before.size());
    EXPECT_NE(damaged, before) << i << ": the mutation changes nothing";
    EXPECT_NE(Problems(region).find(mutations[i].names), std::string::npos)
        << i << ": " << mutations[i].names << " not in:\n"
        << Problems(region);
    EXPECT_EQ(damaged, std::string(reinterpret_cast<char *>(region->base),
                                   before.size()))
        << i << ": verify has changed something";
    memcpy(region->base, before.data(), before.size());
    EXPECT_EQ(Problems(region), "");
    EXPECT_EQ(shmipc_mutex_unlock(region, &board->held), 0);
    EXPECT_EQ(shmipc_rwlock_unlock(region, &board->read), 0);
    shmipc_region_close(second);
  }
  printf("%zu mutations, each named\n", mutations.size());
}

}  // namespace
