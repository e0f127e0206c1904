// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Random damage of channels in use, of their words above all, then every call,
// in a child with an alarm: no signal, no hang, no pointer out of the region.
// And damage of each kind, one at a time, which `verify` has to name.
//
// 500 rounds for each kind, or SHMIPC_CORRUPTIONS of them. SHMIPC_TEST_SEED for
// other random numbers.

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::KindName;
using channel_testing::kKinds;
using shmipc_testing::Count;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kBytes = 200;
constexpr int64_t kShort = 200000;

class ChannelCorruptionTest
    : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  void *Create(TestRegion *own) {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = kBytes;
    options.capacity_messages = 8;
    options.max_ports = 4;
    bytes_ = shmipc_channel_bytes(&options);
    shmipc_ref_t ref;
    if (shmipc_channel_create(own->region(), "channel", &options, &ref) != 0) {
      abort();
    }
    offset_ = ref.offset;
    return shmipc_ref_get(own->region(), ref, 1);
  }
  static void Small(shmipc_region_options_t *options) {
    options->heap_bytes = 2 << 16;
    options->max_processes = 4;
    options->max_threads = 4;
  }
  void *In(shmipc_region_t *region) const {
    return shmipc_ref_get(region, shmipc_ref_t{offset_}, 1);
  }

  size_t bytes_ = 0;
  uint64_t offset_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, ChannelCorruptionTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

// Whether `len` bytes are in the region, and so can be touched.
bool IsInside(shmipc_region_t *region, const void *data, size_t len) {
  auto offset = static_cast<uint64_t>(static_cast<const unsigned char *>(data) -
                                      region->base);
  return offset >= region->data_offset && len <= kBytes &&
         offset + len <= region->mapped_bytes;
}

// Every call at both ends. False if there was a pointer out of the region.
bool CallEverything(shmipc_region_t *region, shmipc_port_t *sender,
                    shmipc_port_t *receiver) {
  char buffer[kBytes] = {};
  size_t len = 0;
  for (int i = 0; i < 12; i++) {
    void *data;
    const void *seen;
    (void)!shmipc_port_send(sender, buffer, kBytes - static_cast<size_t>(i),
                            i == 0 ? kShort : 0);
    if (shmipc_port_reserve(sender, kBytes, &data, 0) == 0) {
      if (!IsInside(region, data, kBytes)) {
        return false;
      }
      memset(data, i, kBytes);
      (void)(i % 3 == 0 ? shmipc_port_abort(sender)
                        : shmipc_port_commit(sender, kBytes));
    }
    (void)!shmipc_port_receive(receiver, buffer, i % 2 == 0 ? kBytes : 50, &len,
                               i == 0 ? kShort : 0);
    if (shmipc_port_peek(receiver, &seen, &len, 0) == 0) {
      if (!IsInside(region, seen, len)) {
        return false;
      }
      memcpy(buffer, seen, len);
      shmipc_port_release(receiver);
    }
  }
  for (shmipc_port_t *port : {sender, receiver}) {
    (void)!shmipc_port_fd(port);
    (void)!shmipc_port_arm(port);
  }
  return true;
}

TEST_P(ChannelCorruptionTest, NoCallDiesOrHangs) {
  uint64_t num_rounds = Count("SHMIPC_CORRUPTIONS", 500);
  Watchdog watchdog(static_cast<unsigned int>(120 + num_rounds / 20));
  const uint64_t seed = Seed();
  TestRegion own(SHMIPC_MEMFD, 4096, Small);
  void *channel = Create(&own);
  std::string whole(static_cast<char *>(channel), bytes_);
  uint64_t signals = 0;
  uint64_t hangs = 0;
  for (uint64_t round = 0; round < num_rounds; round++) {
    memcpy(channel, whole.data(), bytes_);
    Process child([&] {
      std::mt19937_64 random(seed + round);
      alarm(10);
      shmipc_region_t *region = own.AttachInChild();
      auto *bytes = static_cast<unsigned char *>(In(region));
      auto *head = reinterpret_cast<shmipc_channel_t *>(bytes);
      shmipc_port_t *sender = nullptr;
      shmipc_port_t *receiver = nullptr;
      if (shmipc_port_open(region, bytes, SHMIPC_SENDER, &sender) != 0 ||
          shmipc_port_open(region, bytes, SHMIPC_RECEIVER, &receiver) != 0) {
        return 2;
      }
      for (uint64_t i = random() % 30; i > 0; i--) {
        std::string text = Fill(random() % (kBytes + 1), i);
        (void)!shmipc_port_send(sender, text.data(), text.size(), 0);
        char buffer[kBytes];
        size_t len;
        if (random() % 4 != 0) {
          (void)!shmipc_port_receive(receiver, buffer, kBytes, &len, 0);
        }
      }
      shmipc_view_t view;
      (void)!shmipc_view_make(region, bytes, &view);
      for (uint64_t i = 0; i < 1 + round % 12; i++) {
        uint64_t any = random();
        uint64_t *words[] = {
            &head->head, &head->sender_hint, &head->ports[any % 2].word,
            &head->ports[any % 2].note, &head->ports[any % 2].socket,
            // A word of the ring: of a record, or of a cell.
            GetParam() == SHMIPC_SPSC
                ? shmipc_record_word(&view, any % (view.ring_bytes / 16) * 16)
                : &shmipc_cell_of(&view, any)->word};
        switch (random() % 4) {
          case 0:
            bytes[random() % bytes_] ^=
                static_cast<unsigned char>(1 + random() % 255);
            break;
          case 1:
            *words[random() % 6] ^= uint64_t{1} << (random() % 64);
            break;
          case 2:
            *words[random() % 6] = random();
            break;
          default:
            // What looks right.
            *words[5] = GetParam() == SHMIPC_SPSC
                            ? SHMIPC_RECORD_OF(random() % 400)
                            : SHMIPC_CELL_WORD(random() % 4, random() % 64 * 8,
                                               random() % 6);
        }
      }
      if (!CallEverything(region, sender, receiver)) {
        return 3;
      }
      shmipc_channel_info_t info;
      (void)!shmipc_channel_info_get(region, bytes, &info);
      if (random() % 16 == 0) {
        shmipc_region_verify(region, nullptr, nullptr);
      }
      // Another one, that meets the damage when it opens.
      shmipc_region_t *second = own.Attach();
      shmipc_port_t *more[2] = {nullptr, nullptr};
      shmipc_port_close(sender);
      shmipc_port_close(receiver);
      if (shmipc_port_open(second, In(second), SHMIPC_SENDER, &more[0]) == 0 &&
          shmipc_port_open(second, In(second), SHMIPC_RECEIVER, &more[1]) ==
              0 &&
          !CallEverything(second, more[0], more[1])) {
        return 3;
      }
      shmipc_port_close(more[0]);
      shmipc_port_close(more[1]);
      shmipc_region_close(second);
      own.CloseOwn();
      return 0;
    });
    int result = child.Wait();
    hangs += result == -SIGALRM;
    signals += result < 0 && result != -SIGALRM;
    ASSERT_EQ(result, 0) << "round " << round << " of seed " << seed
                         << " (3: a pointer out of the region)";
  }
  printf("%s: %" PRIu64 " corruptions, %" PRIu64 " signals, %" PRIu64
         " hangs, 0 pointers out of the region\n",
         KindName(GetParam()), num_rounds, signals, hangs);
}

struct Mutation {
  const char *names;
  std::function<void(const shmipc_view_t &view)> change;
};

TEST_P(ChannelCorruptionTest, VerifyNamesEachKindOfDamage) {
  auto port = [](const shmipc_view_t &v, uint32_t i) {
    return &v.channel->ports[i];
  };
  std::vector<Mutation> mutations = {
      {"its sizes",
       [](auto &v) {
         v.channel->geometry.ring_bytes ^= 16;
       }},
      {"its sizes",
       [](auto &v) {
         v.channel->geometry.hash ^= 1;
       }},
      {"neither open nor shut",
       [](auto &v) {
         v.channel->is_shut = 2;
       }},
      {"free, with a role",
       [&](auto &v) {
         port(v, 1)->word &= 0xffffffffu;
       }},
      {"neither a sender's nor",
       [&](auto &v) {
         port(v, 0)->word |= uint64_t{3} << 30;
       }},
      {"its process is no slot",
       [&](auto &v) {
         port(v, 0)->word |= uint64_t{0x7ff} << 32;
       }},
  };
  if (GetParam() == SHMIPC_SPSC) {
    mutations.push_back({"at the wrong end", [&](auto &v) {
                           port(v, 0)->word ^= uint64_t{3} << 30;
                         }});
    mutations.push_back({"place is none", [](auto &v) {
                           v.channel->head ^= 4;
                         }});
    mutations.push_back({"place is none", [](auto &v) {
                           v.channel->head = v.ring_bytes;
                         }});
    mutations.push_back({"no message's length", [](auto &v) {
                           ++*shmipc_record_word(&v, v.channel->head);
                         }});
    mutations.push_back({"no message's length", [](auto &v) {
                           *shmipc_record_word(&v, v.channel->head) =
                               SHMIPC_RECORD_OF(kBytes + 1);
                         }});
    mutations.push_back({"without end", [](auto &v) {
                           // From the record that is there, to itself.
                           *shmipc_record_word(&v, v.channel->head) =
                               SHMIPC_RECORD_OF(8);
                           for (uint64_t o = 0; o < v.ring_bytes; o += 16) {
                             *shmipc_record_word(&v, o) = SHMIPC_RECORD_OF(8);
                           }
                         }});
  } else {
    // Cell 0 is free again, 1 is read, 2 is ready, 3 is written, 4 free.
    auto word = [](const shmipc_view_t &v, uint64_t i) {
      return &shmipc_cell_of(&v, i)->word;
    };
    mutations.push_back({"in no state", [=](auto &v) {
                           *word(v, 4) |= 7;
                         }});
    mutations.push_back({"nobody's, with a name", [=](auto &v) {
                           *word(v, 4) |= 8;
                         }});
    mutations.push_back({"no message's length", [](auto &v) {
                           shmipc_cell_of(&v, 2)->len = kBytes + 1;
                         }});
    mutations.push_back({"its port is none", [=](auto &v) {
                           *word(v, 3) |= 0xfff << 3;
                         }});
    mutations.push_back({"its port is nobody's", [=](auto &v) {
                           *word(v, 3) ^= 1 << 15;
                         }});
    mutations.push_back({"its port is nobody's", [=](auto &v) {
                           // Written by a receiver's port.
                           *word(v, 1) = (*word(v, 1) & ~uint64_t{7}) |
                                         SHMIPC_CELL_WRITING;
                         }});
    mutations.push_back(
        {"no note of it", [&](auto &v) {
           port(v, SHMIPC_CELL_PORT(shmipc_cell_of(&v, 3)->word))->note = 6;
         }});
    mutations.push_back({"out of order", [=](auto &v) {
                           *word(v, 5) += uint64_t{1} << 32;
                         }});
    mutations.push_back({"out of order", [=](auto &v) {
                           *word(v, 2) -= uint64_t{1} << 32;
                         }});
  }
  for (size_t i = 0; i < mutations.size(); i++) {
    TestRegion own(SHMIPC_MEMFD, 4096, Small);
    void *channel = Create(&own);
    shmipc_region_t *region = own.region();
    shmipc_view_t view;
    ASSERT_EQ(shmipc_view_make(region, channel, &view), 0);
    shmipc_port_t *sender;
    shmipc_port_t *receiver;
    ASSERT_EQ(shmipc_port_open(region, channel, SHMIPC_SENDER, &sender), 0);
    ASSERT_EQ(shmipc_port_open(region, channel, SHMIPC_RECEIVER, &receiver), 0);
    char buffer[kBytes];
    size_t len;
    const void *seen;
    void *data;
    for (int j = 0; j < 3; j++) {
      ASSERT_EQ(shmipc_port_send(sender, "8 bytes.", 8, 0), 0);
    }
    ASSERT_EQ(shmipc_port_receive(receiver, buffer, kBytes, &len, 0), 0);
    ASSERT_EQ(shmipc_port_peek(receiver, &seen, &len, 0), 0);
    ASSERT_EQ(shmipc_port_reserve(sender, 8, &data, 0), 0);
    ASSERT_EQ(Problems(region), "");
    std::string before(static_cast<char *>(channel), bytes_);
    mutations[i].change(view);
    std::string damaged(static_cast<char *>(channel), bytes_);
    EXPECT_NE(damaged, before) << i << ": the mutation changes nothing";
    EXPECT_NE(Problems(region).find(mutations[i].names), std::string::npos)
        << i << ": " << mutations[i].names << " not in:\n"
        << Problems(region);
    EXPECT_EQ(damaged, std::string(static_cast<char *>(channel), bytes_))
        << i << ": verify has changed something";
    memcpy(channel, before.data(), bytes_);
    EXPECT_EQ(Problems(region), "");
    EXPECT_EQ(shmipc_channel_verify(region, channel, nullptr, nullptr), 0);
    shmipc_port_close(sender);
    shmipc_port_close(receiver);
  }
  printf("%s: %zu mutations, each named\n", KindName(GetParam()),
         mutations.size());
}

}  // namespace
