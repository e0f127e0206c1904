// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of mpmc.c for two senders, two receivers and two that
// recover, on a ring of two cells whose laps wrap around, with deaths at every
// step: each message that was committed comes, whole, in its sender's order,
// and twice only if a dead receiver had it; nobody is stuck. With a step left
// out, or in another order, each has to fail.
//
// One access to shared memory is one step. Memory is sequentially consistent:
// what matters in the sources is read-modify-write, or ordered by one.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr uint8_t kLaps = 16;
constexpr uint8_t kPositions = 2 * kLaps;

enum CellState : uint8_t {
  kFree,
  kWriting,
  kReady,
  kReading,
  kAborted,
  kReturned
};

struct Cell {
  uint8_t state;
  uint8_t lap;
  uint8_t owner;    // Thread + 1.
  uint8_t payload;  // Message + 1; 0xff: half.
  bool IsSame(const Cell &other) const {
    return state == other.state && lap == other.lap && owner == other.owner;
  }
};

enum Pc : uint8_t {
  kLook,
  kNote,
  kClaim,
  kWriteHalf,
  kWrite,
  kCommit,
  kScan,
  kClearReturned,
  kRead,
  kRelease,
  kSkip,
  // Recoverers.
  kFind,
  kRepair,
  kFlag,
  kFreeEntry,
  kDone,
};

struct Thread {
  uint8_t pc;
  uint8_t position;
  uint8_t place;  // Of the cell at hand.
  uint8_t times_left;
  Cell seen;
  uint8_t is_dead;
  uint8_t victim;
  uint8_t from_returned;
  uint8_t count;  // Of `returned`, as seen.
};

constexpr size_t kSenders = 2;
constexpr size_t kReceivers = 2;
constexpr size_t kRecoverers = 2;
constexpr size_t kThreads = kSenders + kReceivers + kRecoverers;
constexpr size_t kMessages = 4;  // Two for each sender.

struct State {
  std::array<Cell, 2> cell;
  uint8_t returned;
  std::array<uint8_t, kSenders + kReceivers> note;   // Position + 1.
  std::array<uint8_t, kSenders + kReceivers> entry;  // 1: taken.
  std::array<Thread, kThreads> thread;
  uint8_t deaths_left;
  uint8_t recoverer_deaths_left;
  // The judge's.
  std::array<uint8_t, kMessages> is_committed;
  std::array<uint8_t, kMessages> times;
  std::array<uint8_t, kMessages> had_by_dead;
  std::array<std::array<uint8_t, kSenders>, kReceivers> next;
  uint8_t wrong;
};

enum Wrong : uint8_t {
  kNothingWrong,
  kHalf,
  kDisorder
};

enum Omission {
  kNothing,
  kNoteAfterClaim,
  kClaimWithoutCompare,
  kFlagBeforeCell,
  kFlagOnlyWithCell,
  kEntryFirst,
  kLapNotCounted,
  kReceiversPassWriting,
  kAbortedIsReady,
};

class Ring {
 public:
  explicit Ring(Omission omission) : omission_(omission) {
  }

  // The first thing that is wrong, or "".
  std::string Explore(const State &start) {
    std::vector<State> stack = {start};
    std::unordered_set<std::string> seen = {Key(start)};
    while (!stack.empty()) {
      State state = stack.back();
      stack.pop_back();
      if (state.wrong != kNothingWrong) {
        return state.wrong == kHalf ? "half a message" : "out of order";
      }
      std::vector<State> next;
      for (size_t who = 0; who < kThreads; who++) {
        if (state.thread[who].is_dead == 0 && state.thread[who].pc != kDone) {
          Step(state, who, &next);
          MayDie(state, who, &next);
        }
      }
      bool goes_on = false;
      for (const State &one : next) {
        std::string key = Key(one);
        goes_on |= key != Key(state);
        if (seen.insert(key).second) {
          stack.push_back(one);
        }
      }
      if (!goes_on) {
        std::string wrong = WrongAtTheEnd(state);
        if (!wrong.empty()) {
          return wrong;
        }
      }
    }
    num_states_ = seen.size();
    return "";
  }
  size_t num_states() const {
    return num_states_;
  }

 private:
  static std::string Key(const State &state) {
    return std::string(reinterpret_cast<const char *>(&state), sizeof(state));
  }

  static int NumReceivers(const State &state) {
    int count = 0;
    for (size_t i = kSenders; i < kSenders + kReceivers; i++) {
      count += state.thread[i].is_dead == 0 && state.thread[i].pc != kDone;
    }
    return count;
  }

  static void MayDie(const State &state, size_t who, std::vector<State> *out) {
    State next = state;
    if (who >= kSenders + kReceivers) {
      if (state.recoverer_deaths_left == 0) {
        return;
      }
      next.recoverer_deaths_left--;
    } else {
      if (state.deaths_left == 0) {
        return;
      }
      // Somebody has to receive.
      if (who >= kSenders && NumReceivers(state) == 1) {
        return;
      }
      next.deaths_left--;
      const Thread &thread = state.thread[who];
      // It has the message, whether it has looked at it or not.
      if (who >= kSenders && (thread.pc == kRead || thread.pc == kRelease)) {
        uint8_t payload = state.cell[thread.place % 2].payload;
        next.had_by_dead[payload - 1] = 1;
      }
    }
    next.thread[who].is_dead = 1;
    out->push_back(next);
  }

  std::string WrongAtTheEnd(const State &state) const {
    for (size_t i = 0; i < kSenders; i++) {
      if (state.thread[i].is_dead == 0 && state.thread[i].pc != kDone) {
        return "a sender is stuck";
      }
    }
    for (size_t i = 0; i < kMessages; i++) {
      if (state.is_committed[i] != 0 && state.times[i] == 0) {
        return "a message is lost";
      }
      if (state.times[i] > 1 + state.had_by_dead[i]) {
        return "a message came twice";
      }
    }
    return "";
  }

  static int8_t LapsAhead(const Cell &cell, uint8_t position) {
    uint8_t ahead =
        static_cast<uint8_t>((cell.lap - position / 2 + kLaps) % kLaps);
    return static_cast<int8_t>(ahead < kLaps / 2 ? ahead : ahead - kLaps);
  }
  static uint8_t Next(uint8_t position) {
    return static_cast<uint8_t>((position + 1) % kPositions);
  }
  static uint8_t NextLap(uint8_t lap) {
    return static_cast<uint8_t>((lap + 1) % kLaps);
  }

  void Step(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    if (who < kSenders) {
      Sender(&next, who);
    } else if (who < kSenders + kReceivers) {
      Receiver(&next, who);
    } else {
      Recoverer(state, who, out);
      return;
    }
    out->push_back(next);
  }

  // The claim's two steps; true once it is ours.
  bool NoteAndClaim(State *state, size_t who, uint8_t to) const {
    Thread &mine = state->thread[who];
    if (mine.pc == kNote) {
      state->note[who] = static_cast<uint8_t>(mine.place + 1);
      mine.pc = kClaim;
      return omission_ == kNoteAfterClaim;
    }
    Cell &cell = state->cell[mine.place % 2];
    if (!cell.IsSame(mine.seen) && omission_ != kClaimWithoutCompare) {
      mine.pc = kLook;
      mine.from_returned = 0;
      return false;
    }
    cell.state = to;
    cell.owner = static_cast<uint8_t>(who + 1);
    if (omission_ == kNoteAfterClaim) {
      mine.pc = kNote;
      return false;
    }
    return true;
  }

  void Sender(State *state, size_t who) const {
    Thread &mine = state->thread[who];
    uint8_t message = static_cast<uint8_t>(who * 2 + (2 - mine.times_left));
    switch (mine.pc) {
      case kLook: {
        mine.seen = state->cell[mine.position % 2];
        mine.seen.payload = 0;
        int8_t ahead = LapsAhead(mine.seen, mine.position);
        if (ahead == 0 && mine.seen.state == kFree) {
          mine.place = mine.position;
          mine.pc = omission_ == kNoteAfterClaim ? kClaim : kNote;
        } else {
          mine.seen = {};
          mine.position = ahead < 0 ? mine.position : Next(mine.position);
        }
        break;
      }
      case kNote:
      case kClaim:
        if (NoteAndClaim(state, who, kWriting)) {
          mine.position = Next(mine.place);
          mine.seen = {};
          mine.pc = kWriteHalf;
        }
        break;
      case kWriteHalf:
        state->cell[mine.place % 2].payload = 0xff;
        mine.pc = kWrite;
        break;
      case kWrite:
        state->cell[mine.place % 2].payload = static_cast<uint8_t>(message + 1);
        mine.pc = kCommit;
        break;
      case kCommit:
        state->cell[mine.place % 2].state = kReady;
        state->cell[mine.place % 2].owner = 0;
        state->is_committed[message] = 1;
        mine.pc = --mine.times_left == 0 ? kDone : kLook;
        break;
      default:
        break;
    }
  }

  void ReceiverLooks(State *state, Thread *mine) const {
    mine->seen = state->cell[mine->position % 2];
    mine->seen.payload = 0;
    mine->place = mine->position;
    int8_t ahead = LapsAhead(mine->seen, mine->position);
    uint8_t cell = mine->seen.state;
    bool is_ready =
        cell == kReady || (cell == kAborted && omission_ == kAbortedIsReady);
    if (ahead == 0 && is_ready) {
      mine->pc = omission_ == kNoteAfterClaim ? kClaim : kNote;
    } else if (ahead == 0 && cell == kAborted) {
      mine->pc = kSkip;
    } else {
      bool waits = ahead == 0 && (cell == kFree || cell == kWriting);
      if (cell == kWriting && omission_ == kReceiversPassWriting) {
        waits = false;
      }
      mine->seen = {};
      mine->place = 0;
      mine->position =
          ahead < 0 || waits ? mine->position : Next(mine->position);
    }
  }

  void Receiver(State *state, size_t who) const {
    Thread &mine = state->thread[who];
    switch (mine.pc) {
      case kLook:
        // The flag and the cell are two steps; the flag is looked at first.
        if (state->returned != 0) {
          mine.count = state->returned;
          mine.victim = 0;
          mine.pc = kScan;
        } else {
          ReceiverLooks(state, &mine);
        }
        break;
      case kClearReturned:
        if (state->returned == mine.count) {
          state->returned = 0;
        }
        mine.count = 0;
        ReceiverLooks(state, &mine);
        if (mine.pc == kClearReturned) {
          mine.pc = kLook;
        }
        break;
      case kScan: {
        const Cell &cell = state->cell[mine.victim];
        if (cell.state == kReturned) {
          mine.seen = cell;
          mine.seen.payload = 0;
          mine.place = static_cast<uint8_t>(cell.lap * 2 + mine.victim);
          mine.from_returned = 1;
          mine.victim = 0;
          mine.count = 0;
          mine.pc = omission_ == kNoteAfterClaim ? kClaim : kNote;
        } else if (++mine.victim == 2) {
          mine.victim = 0;
          mine.pc = kClearReturned;
        }
        break;
      }
      case kNote:
      case kClaim:
        if (NoteAndClaim(state, who, kReading)) {
          mine.seen = {};
          if (mine.from_returned == 0) {
            mine.position = Next(mine.place);
          }
          mine.pc = kRead;
        }
        break;
      case kRead: {
        uint8_t payload = state->cell[mine.place % 2].payload;
        if (payload == 0 || payload == 0xff) {
          state->wrong = kHalf;
          break;
        }
        uint8_t message = static_cast<uint8_t>(payload - 1);
        state->times[message]++;
        uint8_t &expected = state->next[who - kSenders][message / 2];
        if (mine.from_returned == 0 && message % 2 < expected) {
          state->wrong = kDisorder;
        }
        if (mine.from_returned == 0) {
          expected = static_cast<uint8_t>(message % 2 + 1);
        }
        mine.pc = kRelease;
        break;
      }
      case kRelease: {
        Cell &cell = state->cell[mine.place % 2];
        cell = {kFree,
                omission_ == kLapNotCounted ? cell.lap : NextLap(cell.lap), 0,
                0};
        mine.from_returned = 0;
        mine.place = 0;
        mine.pc = kLook;
        break;
      }
      case kSkip: {
        Cell &cell = state->cell[mine.place % 2];
        if (cell.IsSame(mine.seen)) {
          cell = {kFree, NextLap(cell.lap), 0, 0};
        }
        mine.seen = {};
        mine.place = 0;
        mine.pc = kLook;
        break;
      }
      default:
        break;
    }
  }

  void Recoverer(const State &state, size_t who,
                 std::vector<State> *out) const {
    const Thread &thread = state.thread[who];
    if (thread.pc == kFind) {
      for (size_t i = 0; i < kSenders + kReceivers; i++) {
        if (state.thread[i].is_dead != 0 && state.entry[i] != 0) {
          State next = state;
          next.thread[who].victim = static_cast<uint8_t>(i);
          next.thread[who].pc = First();
          out->push_back(next);
        }
      }
      return;
    }
    State next = state;
    Thread &mine = next.thread[who];
    size_t victim = mine.victim;
    bool is_receiver = victim >= kSenders;
    Cell &cell = next.cell[(state.note[victim] + 1) % 2];
    switch (thread.pc) {
      case kRepair:
        // From the note to the change in one step: the change compares.
        mine.from_returned = 0;
        if (cell.owner == victim + 1 && state.note[victim] != 0 &&
            (cell.state == kWriting || cell.state == kReading)) {
          cell.state = cell.state == kWriting ? kAborted : kReturned;
          cell.owner = 0;
          mine.from_returned = 1;
        }
        break;
      case kFlag:
        if (is_receiver &&
            (omission_ != kFlagOnlyWithCell || thread.from_returned != 0)) {
          next.returned++;
        }
        break;
      case kFreeEntry:
        next.entry[victim] = 0;
        break;
      default:
        break;
    }
    mine.pc = After(thread.pc);
    if (mine.pc == kFind) {
      mine.victim = 0;
      mine.from_returned = 0;
    }
    out->push_back(next);
  }

  Pc First() const {
    return omission_ == kFlagBeforeCell ? kFlag
           : omission_ == kEntryFirst   ? kFreeEntry
                                        : kRepair;
  }
  Pc After(uint8_t pc) const {
    if (omission_ == kFlagBeforeCell) {
      return pc == kFlag ? kRepair : pc == kRepair ? kFreeEntry : kFind;
    }
    if (omission_ == kEntryFirst) {
      return pc == kFreeEntry ? kRepair : pc == kRepair ? kFlag : kFind;
    }
    return pc == kRepair ? kFlag : pc == kFlag ? kFreeEntry : kFind;
  }

  Omission omission_;
  size_t num_states_ = 0;
};

// `messages`: how many each sender sends. Starts at the last lap but one.
State Start(std::array<uint8_t, kSenders> messages, size_t num_receivers,
            uint8_t deaths, uint8_t recoverer_deaths) {
  State state = {};
  const uint8_t lap = kLaps - 1;
  for (Cell &cell : state.cell) {
    cell = {kFree, lap, 0, 0};
  }
  for (size_t i = 0; i < kThreads; i++) {
    Thread &thread = state.thread[i];
    thread.position = lap * 2;
    thread.pc = i < kSenders + kReceivers ? kLook : kFind;
    if (i < kSenders) {
      thread.times_left = messages[i];
      thread.pc = messages[i] == 0 ? kDone : kLook;
    } else if (i < kSenders + kReceivers && i - kSenders >= num_receivers) {
      thread.pc = kDone;
    }
    if (i < kSenders + kReceivers) {
      state.entry[i] = thread.pc != kDone;
    }
  }
  state.deaths_left = deaths;
  state.recoverer_deaths_left = recoverer_deaths;
  if (deaths == 0) {
    state.thread[kThreads - 1].pc = kDone;
    state.thread[kThreads - 2].pc = kDone;
  } else if (recoverer_deaths == 0) {
    state.thread[kThreads - 1].pc = kDone;
  }
  return state;
}

struct Case {
  std::array<uint8_t, kSenders> messages;
  size_t num_receivers;
  uint8_t deaths;
  uint8_t recoverer_deaths;
};

constexpr Case kCases[] = {
    {{2, 1}, 2, 0, 0}, {{2, 2}, 1, 0, 0}, {{2, 0}, 2, 1, 1},
    {{1, 1}, 2, 1, 1}, {{2, 1}, 2, 1, 0}, {{1, 1}, 2, 2, 0},
};

std::string ExploreAll(Omission omission, bool prints) {
  std::string wrong;
  for (const Case &one : kCases) {
    Ring ring(omission);
    wrong += ring.Explore(Start(one.messages, one.num_receivers, one.deaths,
                                one.recoverer_deaths));
    if (prints) {
      printf(
          "ring, %d + %d messages, %zu receivers, %d + %d deaths: %zu "
          "states\n",
          one.messages[0], one.messages[1], one.num_receivers, one.deaths,
          one.recoverer_deaths, ring.num_states());
    } else if (!wrong.empty()) {
      break;
    }
  }
  return wrong;
}

TEST(ChannelModelTest, NoMessageIsLostHalfOrTwice) {
  EXPECT_EQ(ExploreAll(kNothing, true), "");
}

TEST(ChannelModelTest, EachStepIsNeeded) {
  for (Omission omission :
       {kNoteAfterClaim, kClaimWithoutCompare, kFlagBeforeCell,
        kFlagOnlyWithCell, kEntryFirst, kLapNotCounted, kReceiversPassWriting,
        kAbortedIsReady}) {
    std::string wrong = ExploreAll(omission, false);
    EXPECT_NE(wrong, "") << omission;
    printf("left out %d: %s\n", omission, wrong.c_str());
  }
}

}  // namespace
