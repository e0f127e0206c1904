// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Stacks are taken in order of their greatest share of any measure until there
// are as many as allowed, or as many nodes.
//
// Wrappers: a program with its own malloc-like functions would have one site,
// and nothing would be learned from it. So a site that a large part of all
// memory goes through, called from many different places, is taken for a
// wrapper, and its callers become the sites; again until nothing changes, as
// wrappers come in layers. Callers are told apart by three frames, because an
// outer wrapper may be the only caller of an inner one.

#include "viz/stack_slots.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace viz {
namespace {

// Keeps a log of endless stacks from taking endless time.
constexpr size_t kFramesWalkedMax = 4096;

// What makes a wrapper of a site (see above), how many layers of them there may
// be, and how deep a site may lie (std::function and containers of containers
// take many frames where nothing is inlined).
constexpr double kWrapperShare = 0.15;
constexpr size_t kWrapperCallers = 8;
constexpr size_t kWrapperLayers = 12;
constexpr size_t kCallerFrames = 3;
constexpr size_t kInnerFrames = 40;

struct Frame {
  uint32_t stack_id;
  uint64_t instruction_pointer;
};

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0
                    : static_cast<double>(part) / static_cast<double>(whole);
}

double Weight(const StackTotals &stack, const Totals &totals) {
  return std::max({Share(stack.allocated_bytes, totals.allocated_bytes),
                   Share(stack.live_bytes, totals.live_bytes),
                   Share(stack.at_peak_bytes, totals.peak_live_bytes),
                   Share(stack.allocations, totals.allocations),
                   Share(stack.temporary, totals.temporary)});
}

}  // namespace

class StackSlots::Builder {
 public:
  Builder(StackSlots *out, const Survey &survey, const EventSource &source,
          const IsWrapper &is_wrapper, const StackSlotsLimits &limits,
          const SiteAddress &site_address)
      : out_(out),
        survey_(survey),
        source_(source),
        is_wrapper_(is_wrapper),
        limits_(limits),
        site_address_(site_address) {
  }

  void Build() {
    out_->nodes_.push_back({Place::kRoot, 0, 0, 0});
    const std::vector<uint32_t> order = Order();
    RankSites(order);
    slot_of_stack_.assign(order.size(), UINT32_MAX);
    size_t kept = 0;
    while (kept < order.size() && kept < limits_.stacks &&
           KeepStack(order[kept])) {
      ++kept;
    }
    for (size_t i = kept; i < order.size(); ++i) {
      ShareSlot(order[i]);
    }
    IndexByStackId();
  }

 private:
  // Stacks, the most important first.
  std::vector<uint32_t> Order() const {
    const std::vector<StackTotals> &stacks = survey_.stacks();
    std::vector<std::pair<double, uint32_t>> weighed;
    for (uint32_t i = 0; i < stacks.size(); ++i) {
      weighed.push_back({-Weight(stacks[i], survey_.totals()), i});
    }
    std::sort(weighed.begin(), weighed.end());
    std::vector<uint32_t> order;
    for (const auto &[weight, index] : weighed) {
      order.push_back(index);
    }
    return order;
  }

  // The frames of a stack, innermost first. A very deep one has a gap in the
  // middle, and one that is deeper than any real one at its outer end: a frame
  // with stack id 0.
  std::vector<Frame> Frames(uint32_t stack_id) const {
    std::vector<Frame> frames;
    uint64_t instruction_pointer;
    uint32_t parent;
    while (stack_id != 0 &&
           source_.StackNode(stack_id, &instruction_pointer, &parent)) {
      if (frames.size() == kFramesWalkedMax) {
        frames.push_back({0, 0});
        break;
      }
      frames.push_back({stack_id, instruction_pointer});
      stack_id = parent;
    }
    if (frames.size() > limits_.depth) {
      const auto half = static_cast<std::ptrdiff_t>(limits_.depth / 2);
      frames[limits_.depth / 2] = {0, 0};
      frames.erase(frames.begin() + half + 1, frames.end() - half);
    }
    return frames;
  }

  // Gives each stack its site, and the sites their order.
  void RankSites(const std::vector<uint32_t> &order) {
    FindWrappers();
    std::map<std::pair<Place, uint64_t>, uint32_t> index;
    std::vector<Site> sites;
    site_of_stack_.resize(order.size());
    for (const uint32_t i : order) {
      const StackTotals &stack = survey_.stacks()[i];
      const Site site = FindSite(stack);
      const auto [entry, is_new] =
          index.insert({{site.place, site.instruction_pointer},
                        static_cast<uint32_t>(sites.size())});
      if (is_new) {
        sites.push_back(site);
      }
      Site &total = sites[entry->second];
      total.first_ns = std::min(total.first_ns, stack.first_ns);
      total.at_peak_bytes += stack.at_peak_bytes;
      total.live_bytes += stack.live_bytes;
      total.allocated_bytes += stack.allocated_bytes;
      site_of_stack_[i] = entry->second;
    }
    SortSites(&sites);
  }

  Site FindSite(const StackTotals &stack) const {
    const InnerFrames frames = Innermost(stack);
    if (frames.count == 0) {
      return {Place::kUnknown, 0, stack.first_ns, 0, 0, 0};
    }
    const uint64_t address = frames.address[frames.site];
    return {Place::kAddress,
            site_address_ ? site_address_(address, stack.first_ns) : address,
            stack.first_ns,
            0,
            0,
            0};
  }

  struct InnerFrames {
    size_t count = 0;
    uint64_t address[kInnerFrames + kCallerFrames];
    size_t site = 0;  // Which of them; the innermost if all are wrappers.
  };

  InnerFrames Innermost(const StackTotals &stack) const {
    InnerFrames frames;
    uint32_t id = stack.stack_id;
    uint32_t parent = 0;
    while (id != 0 && frames.count < std::size(frames.address) &&
           source_.StackNode(id, &frames.address[frames.count], &parent)) {
      ++frames.count;
      id = parent;
    }
    for (size_t i = 0; i < std::min(frames.count, kInnerFrames); ++i) {
      if (wrappers_.count(frames.address[i]) == 0 &&
          !is_wrapper_(frames.address[i], stack.first_ns)) {
        frames.site = i;
        break;
      }
    }
    return frames;
  }

  // How much goes through a site, and by which callers.
  struct Traffic {
    uint64_t allocations = 0;
    uint64_t bytes = 0;
    std::set<std::array<uint64_t, kCallerFrames>> callers;
  };

  void FindWrappers() {
    const Totals &totals = survey_.totals();
    bool found = true;
    for (size_t layer = 0; found && layer < kWrapperLayers; ++layer) {
      std::map<uint64_t, Traffic> traffic;
      for (const StackTotals &stack : survey_.stacks()) {
        const InnerFrames frames = Innermost(stack);
        if (frames.count == 0) {
          continue;
        }
        Traffic &site = traffic[frames.address[frames.site]];
        site.allocations += stack.allocations;
        site.bytes += stack.allocated_bytes;
        std::array<uint64_t, kCallerFrames> callers{};
        for (size_t i = 0; i < kCallerFrames; ++i) {
          const size_t at = frames.site + 1 + i;
          callers[i] = at < frames.count ? frames.address[at] : 0;
        }
        if (site.callers.size() < kWrapperCallers) {
          site.callers.insert(callers);
        }
      }
      found = false;
      for (const auto &[address, site] : traffic) {
        const bool is_busy =
            Share(site.allocations, totals.allocations) >= kWrapperShare ||
            Share(site.bytes, totals.allocated_bytes) >= kWrapperShare;
        if (is_busy && site.callers.size() >= kWrapperCallers) {
          found |= wrappers_.insert(address).second;
        }
      }
    }
  }

  void SortSites(std::vector<Site> *sites) {
    std::vector<uint32_t> order;
    for (uint32_t i = 0; i < sites->size(); ++i) {
      order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      const auto key = [&](const Site &site) {
        return std::make_tuple(~site.at_peak_bytes, ~site.live_bytes,
                               ~site.allocated_bytes, site.instruction_pointer,
                               site.place);
      };
      return key((*sites)[a]) < key((*sites)[b]);
    });
    std::vector<uint32_t> rank(sites->size());
    const size_t shown = std::min(order.size(), limits_.sites);
    for (uint32_t i = 0; i < order.size(); ++i) {
      const Site &site = (*sites)[order[i]];
      if (i < shown) {
        out_->sites_.push_back(site);
      } else if (i == shown) {
        out_->sites_.push_back({Place::kSmaller, 0, site.first_ns, 0, 0, 0});
      }
      rank[order[i]] = std::min(i, static_cast<uint32_t>(shown));
    }
    for (uint32_t &site : site_of_stack_) {
      site = rank[site];
    }
  }

  // Returns false, and changes nothing, if there is no room for its nodes.
  bool KeepStack(uint32_t index) {
    const StackTotals &stack = survey_.stacks()[index];
    const std::vector<Frame> frames = Frames(stack.stack_id);
    if (out_->nodes_.size() + frames.size() + 1 > limits_.nodes) {
      return false;
    }
    uint32_t node = 0;
    for (size_t i = frames.size(); i-- > 0;) {
      node = Child(node, frames[i], stack.first_ns);
    }
    if (frames.empty()) {
      node = SpecialChild(0, Place::kUnknown, stack.first_ns);
    }
    AddToSlot(index, node);
    return true;
  }

  void ShareSlot(uint32_t index) {
    const StackTotals &stack = survey_.stacks()[index];
    const std::vector<Frame> frames = Frames(stack.stack_id);
    uint32_t node = 0;
    for (size_t i = frames.size(); i-- > 0;) {
      const uint32_t *child = FindChild(node, frames[i]);
      if (child == nullptr) {
        break;
      }
      node = *child;
    }
    const Place place = frames.empty() ? Place::kUnknown : Place::kSmaller;
    AddToSlot(index, SpecialChild(node, place, stack.first_ns));
  }

  // A node for each place below each parent. Below the gap of a deep stack the
  // same node of the log may appear under several parents.
  static std::pair<uint64_t, uint64_t> Key(uint32_t parent,
                                           const Frame &frame) {
    return {parent, frame.stack_id == 0 ? 0 : frame.instruction_pointer};
  }

  uint32_t *FindChild(uint32_t parent, const Frame &frame) {
    const auto found = children_.find(Key(parent, frame));
    return found == children_.end() ? nullptr : &found->second;
  }

  uint32_t Child(uint32_t parent, const Frame &frame, uint64_t first_ns) {
    if (uint32_t *child = FindChild(parent, frame)) {
      uint64_t &first = out_->nodes_[*child].first_ns;
      first = std::min(first, first_ns);
      return *child;
    }
    // Address 0 is the recorder's word for outer frames that it cut off.
    const bool is_omitted =
        frame.stack_id == 0 || frame.instruction_pointer == 0;
    const Place place = is_omitted ? Place::kOmitted : Place::kAddress;
    const uint32_t child = AddNode(parent, place, first_ns);
    out_->nodes_[child].instruction_pointer = frame.instruction_pointer;
    children_[Key(parent, frame)] = child;
    return child;
  }

  uint32_t SpecialChild(uint32_t parent, Place place, uint64_t first_ns) {
    const auto [entry, is_new] = special_.insert({{parent, place}, 0});
    if (is_new) {
      entry->second = AddNode(parent, place, first_ns);
    }
    return entry->second;
  }

  uint32_t AddNode(uint32_t parent, Place place, uint64_t first_ns) {
    out_->nodes_.push_back({place, parent, 0, first_ns});
    return static_cast<uint32_t>(out_->nodes_.size() - 1);
  }

  void AddToSlot(uint32_t index, uint32_t node) {
    const StackTotals &stack = survey_.stacks()[index];
    const uint32_t site = site_of_stack_[index];
    if (slot_at_.size() >= limits_.stacks + limits_.shared_slots) {
      // Too many: stop telling where sites were called from.
      node = SpecialChild(0, Place::kSmaller, stack.first_ns);
    }
    const auto [entry, is_new] = slot_at_.insert(
        {{node, site}, static_cast<uint32_t>(out_->slots_.size())});
    if (is_new) {
      Slot slot;
      slot.node = node;
      slot.site = site;
      out_->slots_.push_back(slot);
    }
    Slot &slot = out_->slots_[entry->second];
    ++slot.stacks;
    slot.allocations += stack.allocations;
    slot.allocated_bytes += stack.allocated_bytes;
    slot.temporary += stack.temporary;
    slot.live_blocks += stack.live_blocks;
    slot.live_bytes += stack.live_bytes;
    slot.at_peak_bytes += stack.at_peak_bytes;
    slot_of_stack_[index] = entry->second;
  }

  uint32_t SpecialSite(Place place) {
    std::vector<Site> &sites = out_->sites_;
    size_t i = 0;
    while (i < sites.size() && sites[i].place != place) {
      ++i;
    }
    if (i == sites.size()) {
      sites.push_back({place, 0, 0, 0, 0, 0});
    }
    return static_cast<uint32_t>(i);
  }

  void IndexByStackId() {
    const std::vector<StackTotals> &stacks = survey_.stacks();
    uint32_t end = 0;
    for (const StackTotals &stack : stacks) {
      end = std::max(end, stack.stack_id + 1);
    }
    // Whoever was not surveyed: with the stacks without a record, or if there
    // are none, a new slot.
    const auto known = [&]() -> uint32_t {
      for (uint32_t i = 0; i < out_->slots_.size(); ++i) {
        if (out_->nodes_[out_->slots_[i].node].place == Place::kUnknown) {
          return i;
        }
      }
      return UINT32_MAX;
    }();
    out_->unknown_slot_ = known;
    if (known == UINT32_MAX) {
      Slot slot;
      slot.node = SpecialChild(0, Place::kUnknown, 0);
      slot.site = SpecialSite(Place::kUnknown);
      out_->unknown_slot_ = static_cast<uint32_t>(out_->slots_.size());
      out_->slots_.push_back(slot);
    }
    out_->slot_of_.assign(end, out_->unknown_slot_);
    for (uint32_t i = 0; i < stacks.size(); ++i) {
      out_->slot_of_[stacks[i].stack_id] = slot_of_stack_[i];
    }
  }

  StackSlots *out_;
  const Survey &survey_;
  const EventSource &source_;
  const IsWrapper &is_wrapper_;
  const StackSlotsLimits &limits_;
  const SiteAddress &site_address_;
  std::set<uint64_t> wrappers_;  // Found by their traffic.
  std::vector<uint32_t> site_of_stack_;
  std::vector<uint32_t> slot_of_stack_;
  std::map<std::pair<uint64_t, uint64_t>, uint32_t> children_;
  std::map<std::pair<uint32_t, Place>, uint32_t> special_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> slot_at_;
};

StackSlots::StackSlots(const Survey &survey, const EventSource &source,
                       const IsWrapper &is_wrapper,
                       const StackSlotsLimits &limits,
                       const SiteAddress &site_address) {
  Builder(this, survey, source, is_wrapper, limits, site_address).Build();
}

}  // namespace viz
