// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/report_data.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "viz/column.h"
#include "viz/json.h"
#include "viz/place_table.h"

namespace viz {
namespace {

constexpr uint64_t kExactInJavaScript = uint64_t{1} << 53;

class Packer {
 public:
  explicit Packer(const ReportInputs &inputs)
      : in_(inputs), places_(inputs.symbolizer) {
  }

  std::string Pack() {
    PackFrames();
    PackCells();
    PackSlotChanges();
    PackKept();
    PackSlots();
    PackHistogram();
    json_.BeginObject();
    WriteProcess();
    WriteTotals();
    WriteThreads();
    WriteModules();
    WriteLayout();
    json_.Key("strings").BeginArray();
    for (const std::string &string : places_.strings()) {
      json_.String(string);
    }
    json_.EndArray();
    places_.Pack(
        [this](const char *name, const Column &column) { Add(name, column); });
    WriteColumns();
    json_.EndObject();
    const std::string head = Deflate(json_.text());
    std::string out;
    for (unsigned shift = 0; shift < 32; shift += 8) {
      out += static_cast<char>(head.size() >> shift);
    }
    return out + head + columns_;
  }

 private:
  void Add(const char *name, const Column &column) {
    const std::string deflated = Deflate(column.bytes());
    listed_.push_back({name, column.count(), deflated.size()});
    columns_ += deflated;
  }

  void PackFrames() {
    Column time, events, allocations, frees, temporary, blocks, live, highest,
        usable, footprint, mapped, resident;
    for (const TimelineFrame &frame : in_.timeline->frames()) {
      time.PutDelta(frame.time_ns);
      events.PutDelta(frame.events);
      allocations.PutDelta(frame.allocations);
      frees.PutDelta(frame.frees);
      temporary.PutDelta(frame.temporary);
      blocks.PutDelta(frame.live_blocks);
      live.PutDelta(frame.live_bytes);
      highest.Put(frame.highest_live_bytes - frame.live_bytes);
      usable.PutDelta(frame.usable_bytes);
      footprint.PutDelta(frame.footprint_bytes);
      mapped.PutDelta(frame.mapped_bytes);
      resident.PutDelta(frame.resident_bytes);
    }
    Add("frame.time", time);
    Add("frame.events", events);
    Add("frame.allocations", allocations);
    Add("frame.frees", frees);
    Add("frame.temporary", temporary);
    Add("frame.blocks", blocks);
    Add("frame.live", live);
    Add("frame.highest", highest);
    Add("frame.usable", usable);
    Add("frame.footprint", footprint);
    Add("frame.mapped", mapped);
    Add("frame.resident", resident);
  }

  void PackCells() {
    const FrameLog<CellChange> &log = in_.timeline->cells().log();
    Column frame, count, cell, owner, bytes, mapped, blocks;
    size_t i = 0;
    for (const LoggedFrame &logged : log.frames()) {
      frame.PutDelta(logged.number);
      count.Put(logged.changes_end - i);
      uint64_t last = 0;
      for (; i < logged.changes_end; ++i) {
        const CellChange &change = log.changes()[i];
        cell.Put(change.cell - last);
        last = change.cell;
        owner.Put(change.owner);
        bytes.PutSigned(change.bytes);
        mapped.PutSigned(change.mapped);
        blocks.PutSigned(change.blocks);
      }
    }
    Add("cellFrame.frame", frame);
    Add("cellFrame.count", count);
    Add("cell.cell", cell);
    Add("cell.owner", owner);
    Add("cell.bytes", bytes);
    Add("cell.mapped", mapped);
    Add("cell.blocks", blocks);
  }

  void PackSlotChanges() {
    const FrameLog<SlotChange> &log = in_.timeline->slots().log();
    Column frame, count, slot, allocations, temporary, bytes, live;
    size_t i = 0;
    for (const LoggedFrame &logged : log.frames()) {
      frame.PutDelta(logged.number);
      count.Put(logged.changes_end - i);
      uint64_t last = 0;
      for (; i < logged.changes_end; ++i) {
        const SlotChange &change = log.changes()[i];
        slot.Put(change.slot - last);
        last = change.slot;
        allocations.Put(change.allocations);
        temporary.Put(change.temporary);
        bytes.Put(change.allocated_bytes);
        live.PutSigned(change.live_bytes);
      }
    }
    Add("slotFrame.frame", frame);
    Add("slotFrame.count", count);
    Add("change.slot", slot);
    Add("change.allocations", allocations);
    Add("change.temporary", temporary);
    Add("change.bytes", bytes);
    Add("change.live", live);
  }

  // By the frames that slots have, of which there are fewer.
  void PackKept() {
    const std::vector<LoggedFrame> &frames =
        in_.timeline->slots().log().frames();
    std::vector<KeptBytes> kept = in_.timeline->kept();
    size_t at = 0;
    for (KeptBytes &entry : kept) {
      while (at + 1 < frames.size() && frames[at].number < entry.frame) {
        ++at;
      }
      entry.frame = static_cast<uint32_t>(at);
    }
    std::sort(kept.begin(), kept.end(),
              [](const KeptBytes &a, const KeptBytes &b) {
                return std::make_pair(a.frame, a.slot) <
                       std::make_pair(b.frame, b.slot);
              });
    Column frame, slot, bytes;
    for (size_t i = 0; i < kept.size();) {
      uint64_t sum = 0;
      const size_t first = i;
      for (; i < kept.size() && kept[i].frame == kept[first].frame &&
             kept[i].slot == kept[first].slot;
           ++i) {
        sum += kept[i].bytes;
      }
      frame.PutDelta(kept[first].frame);
      slot.PutDelta(kept[first].slot);
      bytes.Put(sum);
    }
    Add("kept.slotFrame", frame);
    Add("kept.slot", slot);
    Add("kept.bytes", bytes);
  }

  void PackSlots() {
    Column parent, node_place, site_place, node, site, stacks, allocations,
        bytes, temporary, live_blocks, live, at_peak;
    uint32_t number = 0;
    for (const StackNode &stack_node : in_.slots->nodes()) {
      parent.Put(number++ - stack_node.parent);
      node_place.PutDelta(places_.Find(stack_node.place,
                                       stack_node.instruction_pointer,
                                       stack_node.first_ns));
    }
    for (const Site &entry : in_.slots->sites()) {
      site_place.PutDelta(places_.FindSite(
          entry.place, entry.instruction_pointer, entry.first_ns));
    }
    for (const Slot &slot : in_.slots->slots()) {
      node.PutDelta(slot.node);
      site.PutDelta(slot.site);
      stacks.Put(slot.stacks);
      allocations.Put(slot.allocations);
      bytes.Put(slot.allocated_bytes);
      temporary.Put(slot.temporary);
      live_blocks.Put(slot.live_blocks);
      live.Put(slot.live_bytes);
      at_peak.Put(slot.at_peak_bytes);
    }
    Add("node.parent", parent);
    Add("node.place", node_place);
    Add("site.place", site_place);
    Add("slot.node", node);
    Add("slot.site", site);
    Add("slot.stacks", stacks);
    Add("slot.allocations", allocations);
    Add("slot.bytes", bytes);
    Add("slot.temporary", temporary);
    Add("slot.liveBlocks", live_blocks);
    Add("slot.live", live);
    Add("slot.atPeak", at_peak);
  }

  // Row by row: a size, all lifetimes.
  void PackHistogram() {
    Column blocks, bytes, ends;
    for (size_t size = 0; size < kSizeBuckets; ++size) {
      for (size_t lifetime = 0; lifetime < kLifetimeBuckets; ++lifetime) {
        const HistogramCell &cell = in_.survey->histogram(size, lifetime);
        blocks.Put(cell.blocks);
        bytes.Put(cell.bytes);
      }
    }
    for (size_t i = 0; i + 2 < kLifetimeBuckets; ++i) {
      ends.Put(LifetimeBucketEndNs(i));
    }
    Add("histogram.blocks", blocks);
    Add("histogram.bytes", bytes);
    Add("histogram.lifetimeEnds", ends);
  }

  void Number(const char *key, uint64_t value) {
    json_.Key(key).Number(std::min(value, kExactInJavaScript));
  }

  void WriteProcess() {
    const ProcessInfo &process = in_.process;
    json_.Key("log").BeginObject();
    json_.Key("path").String(in_.log_path);
    json_.Key("error").String(in_.error);
    Number("bytes", process.file_bytes);
    Number("lost",
           std::max(process.lost_count, in_.survey->totals().lost_events));
    json_.EndObject();
    json_.Key("process").BeginObject();
    json_.Key("executable").String(process.executable);
    json_.Key("arguments").BeginArray();
    for (const std::string &argument : process.arguments) {
      json_.String(argument);
    }
    json_.EndArray();
    Number("pid", process.pid);
    Number("startUnixMs", process.start_unix_ns / 1000000);
    json_.Key("cleanEnd").Bool(process.clean_end);
    json_.EndObject();
  }

  void WriteTotals() {
    const Totals &totals = in_.survey->totals();
    json_.Key("totals").BeginObject();
    Number("events", totals.events);
    Number("allocations", totals.allocations);
    Number("frees", totals.frees);
    Number("resizes", totals.resizes);
    Number("temporary", totals.temporary);
    Number("allocatedBytes", totals.allocated_bytes);
    Number("liveBytes", totals.live_bytes);
    Number("liveBlocks", totals.live_blocks);
    Number("peakLiveBytes", totals.peak_live_bytes);
    Number("peakLiveBlocks", totals.peak_live_blocks);
    Number("peakEvents", totals.peak_event_count);
    Number("peakTimeNs", totals.peak_time_ns);
    Number("durationNs", totals.end_time_ns);
    Number("peakResidentBytes", totals.peak_resident_bytes);
    Number("samples", totals.samples);
    Number("maps", totals.maps);
    Number("unknownFrees", totals.anomalies.unknown_frees);
    Number("unknownResizes", totals.anomalies.unknown_resizes);
    Number("overwrittenBlocks", totals.anomalies.overwritten_blocks);
    Number("nullAllocations", totals.anomalies.null_allocations);
    // Had the log not grown between the passes, this would be the survey's.
    const TimelineFrame &last = in_.timeline->frames().back();
    json_.Key("passesAgree")
        .Bool(last.events == totals.events &&
              last.live_bytes == totals.live_bytes &&
              last.allocations == totals.allocations);
    json_.EndObject();
  }

  void WriteThreads() {
    const std::vector<uint64_t> &allocations = in_.survey->thread_allocations();
    json_.Key("threads").BeginArray();
    for (size_t i = 0; i < in_.threads.size(); ++i) {
      const heaplog_thread_t &thread = in_.threads[i];
      json_.BeginObject();
      Number("tid", thread.tid);
      json_.Key("name").String(
          std::string(thread.name, strnlen(thread.name, sizeof(thread.name))));
      Number("startNs", thread.start_time_ns);
      if (thread.end_time_ns != UINT64_MAX) {
        Number("endNs", thread.end_time_ns);
      }
      Number("allocations", i < allocations.size() ? allocations[i] : 0);
      json_.EndObject();
    }
    json_.EndArray();
    json_.Key("ownerThreads").BeginArray();
    for (const uint32_t index : in_.timeline->owner_threads()) {
      json_.Number(index);
    }
    json_.EndArray();
    json_.Key("owners").BeginObject();
    Number("sites", kOwnerSites);
    Number("threads", kOwnerThreads);
    Number("sizes", kOwnerSizes);
    json_.EndObject();
  }

  // Only those that an address fell into; their numbers are the table's.
  void WriteModules() {
    json_.Key("modules").BeginArray();
    for (const size_t index : places_.modules()) {
      const Module &module = in_.symbolizer->modules()[index];
      json_.BeginObject();
      json_.Key("path").String(module.path);
      json_.Key("start").String(Hex(module.start_address));
      json_.Key("state").String(StateName(in_.symbolizer->state(index)));
      json_.EndObject();
    }
    json_.EndArray();
  }

  static std::string Hex(uint64_t value) {
    return absl::StrCat("0x", absl::Hex(value));
  }

  static const char *StateName(ModuleState state) {
    switch (state) {
      case ModuleState::kFound:
        return "found";
      case ModuleState::kUnreadable:
        return "unreadable";
      case ModuleState::kChanged:
        return "changed";
      default:
        return "unused";
    }
  }

  void WriteLayout() {
    const AddressLayout &layout = in_.timeline->cells().layout();
    json_.Key("layout").BeginObject();
    Number("cellBits", layout.cell_bits());
    json_.Key("segments").BeginArray();
    for (const AddressLayout::Segment &segment : layout.segments()) {
      json_.BeginObject();
      json_.Key("start").String(Hex(segment.start));
      const size_t next = &segment == &layout.segments().back()
                              ? layout.cell_count()
                              : (&segment)[1].first_cell;
      Number("cells", next - segment.first_cell);
      json_.EndObject();
    }
    json_.EndArray();
    json_.EndObject();
  }

  void WriteColumns() {
    json_.Key("columns").BeginArray();
    for (const Listed &listed : listed_) {
      json_.BeginObject();
      json_.Key("name").String(listed.name);
      Number("count", listed.count);
      Number("bytes", listed.bytes);
      json_.EndObject();
    }
    json_.EndArray();
  }

  struct Listed {
    const char *name;
    size_t count;
    size_t bytes;
  };

  const ReportInputs &in_;
  PlaceTable places_;
  JsonWriter json_;
  std::string columns_;
  std::vector<Listed> listed_;
};

}  // namespace

std::string PackReport(const ReportInputs &inputs) {
  return Packer(inputs).Pack();
}

}  // namespace viz
