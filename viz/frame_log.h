// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A bounded list of what changed from frame to frame. Frames are moments of the
// log, numbered from 0; each has a list of changes in ascending order of their
// keys. When there are more changes than the budget allows, every second frame
// is dropped and its changes are joined to those of the next frame, again and
// again; frames that must be kept stay. Adding up the changes of all frames up
// to one thus gives the exact state at that moment, however few frames remain.
//
// `Change` needs:
//   uint64_t Key() const             what changed
//   void Join(const Change &later)   this change and then the later one
//   bool IsNothing() const           the two undid each other

#ifndef MY_ALLOC_VIZ_FRAME_LOG_H_
#define MY_ALLOC_VIZ_FRAME_LOG_H_

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace viz {

struct LoggedFrame {
  uint32_t number;
  bool keep;
  size_t changes_end;  // Its changes end here, those of the next one start.
};

template <typename Change>
class FrameLog {
 public:
  // Of `frames_expected` frames no less than `frames_min` stay, but for
  // keeping to `changes_max` changes.
  FrameLog(size_t changes_max, size_t frames_expected, size_t frames_min)
      : changes_max_(changes_max) {
    while (frames_expected >> (stride_log2_max_ + 1) >=
           std::max<size_t>(frames_min, 1)) {
      ++stride_log2_max_;
    }
  }

  // Tells whether a frame is to be recorded at all. If not, its changes belong
  // to the next one that is.
  bool IsRecorded(uint32_t frame, bool keep) const {
    return !overflowed_ &&
           (keep || ((frame + 1) & ((1u << stride_log2_) - 1)) == 0);
  }

  // Adds a change to the frame that is about to be ended.
  void Push(const Change &change) {
    changes_.push_back(change);
  }

  // Ends a frame that IsRecorded(); numbers ascend.
  void EndFrame(uint32_t frame, bool keep) {
    assert(frames_.empty() || frames_.back().number < frame);
    frames_.push_back({frame, keep, changes_.size()});
    KeepBudget(changes_max_ + changes_max_ / 2);
  }

  void Finish() {
    KeepBudget(changes_max_);
  }

  // There were too many changes even with the fewest frames: the log is empty
  // from then on.
  bool overflowed() const {
    return overflowed_;
  }
  const std::vector<LoggedFrame> &frames() const {
    return frames_;
  }
  const std::vector<Change> &changes() const {
    return changes_;
  }

 private:
  void KeepBudget(size_t limit) {
    while (changes_.size() > limit && stride_log2_ < stride_log2_max_) {
      ++stride_log2_;
      HalveFrames();
    }
    if (changes_.size() > limit) {
      overflowed_ = true;
      std::vector<Change>().swap(changes_);
      frames_.clear();
    }
  }

  void HalveFrames() {
    std::vector<Change> halved;
    std::vector<Change> pending;  // Of frames dropped since the last kept one.
    std::vector<Change> joined;
    std::vector<LoggedFrame> kept;
    halved.reserve(changes_.size());
    size_t begin = 0;
    for (size_t i = 0; i < frames_.size(); ++i) {
      const LoggedFrame &frame = frames_[i];
      joined.clear();
      JoinLists(pending, changes_.data() + begin,
                changes_.data() + frame.changes_end, &joined);
      begin = frame.changes_end;
      // The last one has no next to be joined to; it may go another time.
      if (IsRecorded(frame.number, frame.keep) || i + 1 == frames_.size()) {
        halved.insert(halved.end(), joined.begin(), joined.end());
        kept.push_back({frame.number, frame.keep, halved.size()});
        pending.clear();
      } else {
        pending.swap(joined);
      }
    }
    changes_.swap(halved);
    frames_.swap(kept);
  }

  static void JoinLists(const std::vector<Change> &earlier, const Change *b,
                        const Change *b_end, std::vector<Change> *out) {
    const Change *a = earlier.data();
    const Change *a_end = a + earlier.size();
    while (a != a_end && b != b_end) {
      if (a->Key() != b->Key()) {
        out->push_back(a->Key() < b->Key() ? *a++ : *b++);
        continue;
      }
      Change both = *a++;
      both.Join(*b++);
      if (!both.IsNothing()) {
        out->push_back(both);
      }
    }
    out->insert(out->end(), a, a_end);
    out->insert(out->end(), b, b_end);
  }

  size_t changes_max_;
  unsigned stride_log2_ = 0;  // Every 2^this-th frame is recorded.
  unsigned stride_log2_max_ = 0;
  std::vector<LoggedFrame> frames_;
  std::vector<Change> changes_;
  bool overflowed_ = false;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_FRAME_LOG_H_
