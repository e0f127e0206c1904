// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/report.h"

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "viz/allocation_wrapper.h"
#include "viz/page.h"
#include "viz/place_table.h"
#include "viz/report_data.h"
#include "viz/symbolizer.h"

namespace viz {
namespace {

constexpr size_t kBatchEvents = 2048;

template <typename Pass>
void FeedAll(EventSource *source, Pass *pass) {
  std::vector<heaplog_event_t> events(kBatchEvents);
  size_t count;
  do {
    count = source->Read(events.data(), events.size());
    pass->Add(events.data(), count);
  } while (count == events.size());
  pass->Finish();
}

// What StackSlots wants to know of addresses. Asked about the innermost frames
// of each stack, of which most are the same.
class SiteRules {
 public:
  explicit SiteRules(Symbolizer *symbolizer) : symbolizer_(symbolizer) {
  }

  bool IsWrapper(uint64_t return_address, uint64_t time_ns) {
    return Find(return_address, time_ns).is_wrapper;
  }

  // The first address seen of the same line of code; of an unknown line, the
  // address itself.
  uint64_t SiteAddress(uint64_t return_address, uint64_t time_ns) {
    return Find(return_address, time_ns).site_address;
  }

 private:
  struct Known {
    bool is_wrapper;
    uint64_t site_address;
  };

  Known Find(uint64_t return_address, uint64_t time_ns) {
    const size_t module = symbolizer_->ModuleAt(return_address, time_ns);
    const auto [entry, is_new] =
        known_.insert({{module, return_address}, {false, return_address}});
    if (is_new) {
      const CodePlace code = symbolizer_->Resolve(module, return_address);
      const CodeLine &line = code.lines[SiteLine(code)];
      entry->second.is_wrapper = IsNoSite(line.function);
      if (!line.file.empty()) {
        entry->second.site_address =
            lines_
                .insert({{module, line.function, line.file, line.line},
                         return_address})
                .first->second;
      }
    }
    return entry->second;
  }

  Symbolizer *symbolizer_;
  std::map<std::pair<size_t, uint64_t>, Known> known_;
  std::map<std::tuple<size_t, std::string, std::string, uint32_t>, uint64_t>
      lines_;
};

// What people read of a place: its function, or else where it is.
std::string PlaceName(Symbolizer *symbolizer, uint64_t return_address,
                      uint64_t time_ns) {
  const size_t index = symbolizer->ModuleAt(return_address, time_ns);
  const CodePlace code = symbolizer->Resolve(index, return_address);
  const std::string &function = code.lines[SiteLine(code)].function;
  if (!function.empty()) {
    return function;
  }
  if (index == Symbolizer::kNoModule) {
    return absl::StrCat("0x", absl::Hex(return_address));
  }
  const Module &module = symbolizer->modules()[index];
  return absl::StrCat(module.path.substr(module.path.find_last_of('/') + 1),
                      "+0x", absl::Hex(return_address - module.load_bias));
}

bool HasName(Symbolizer *symbolizer, const StackNode &node) {
  const uint64_t address = node.instruction_pointer;
  return node.place == Place::kAddress &&
         !symbolizer
              ->Resolve(symbolizer->ModuleAt(address, node.first_ns), address)
              .lines.front()
              .function.empty();
}

// The site with most bytes at the peak; one without a name with the caller that
// has one.
std::string TopSiteName(Symbolizer *symbolizer, const StackSlots &slots) {
  const Site &site = slots.sites().front();
  if (site.place != Place::kAddress) {
    return "";
  }
  const std::string name =
      PlaceName(symbolizer, site.instruction_pointer, site.first_ns);
  const Slot *heaviest = nullptr;
  for (const Slot &slot : slots.slots()) {
    if (slot.site == 0 &&
        (heaviest == nullptr || slot.at_peak_bytes > heaviest->at_peak_bytes)) {
      heaviest = &slot;
    }
  }
  bool is_outside = false;
  for (uint32_t i = heaviest->node; i != 0; i = slots.nodes()[i].parent) {
    const StackNode &node = slots.nodes()[i];
    if (node.instruction_pointer == site.instruction_pointer) {
      if (HasName(symbolizer, node)) {
        return name;
      }
      is_outside = true;
    } else if (is_outside && HasName(symbolizer, node)) {
      const std::string caller =
          PlaceName(symbolizer, node.instruction_pointer, node.first_ns);
      return IsBeginning(caller) ? name : absl::StrCat(name, " for ", caller);
    }
  }
  return name;
}

}  // namespace

ReportResult MakeReport(EventSource *source, const std::string &log_path,
                        const ReportLimits &limits) {
  Survey survey;
  FeedAll(source, &survey);
  ReportInputs inputs;
  inputs.log_path = log_path;
  inputs.error = source->Error();
  inputs.process = source->Process();
  inputs.threads = source->Threads();
  Symbolizer symbolizer(source->Modules());
  SiteRules rules(&symbolizer);
  const StackSlots slots(
      survey, *source,
      [&](uint64_t address, uint64_t time_ns) {
        return rules.IsWrapper(address, time_ns);
      },
      limits.stacks,
      [&](uint64_t address, uint64_t time_ns) {
        return rules.SiteAddress(address, time_ns);
      });
  Timeline timeline(survey, slots, limits.timeline);
  if (!source->Rewind()) {
    inputs.error = source->Error();
  }
  FeedAll(source, &timeline);
  inputs.survey = &survey;
  inputs.slots = &slots;
  inputs.timeline = &timeline;
  inputs.symbolizer = &symbolizer;

  ReportResult result;
  result.page = MakePage(PackReport(inputs));
  result.error = inputs.error;
  result.totals = survey.totals();
  if (!slots.sites().empty()) {
    result.top_site = TopSiteName(&symbolizer, slots);
    result.top_site_bytes = slots.sites().front().at_peak_bytes;
  }
  return result;
}

}  // namespace viz
