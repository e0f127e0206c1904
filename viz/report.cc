// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/report.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "viz/page.h"
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

// Asked about the innermost frames of each stack, of which most are the same.
class WrapperTest {
 public:
  explicit WrapperTest(Symbolizer *symbolizer) : symbolizer_(symbolizer) {
  }

  bool operator()(uint64_t return_address, uint64_t time_ns) {
    const size_t module = symbolizer_->ModuleAt(return_address, time_ns);
    const auto [entry, is_new] = known_.insert({{module, return_address}, 0});
    if (is_new) {
      entry->second = IsAllocationWrapper(
          symbolizer_->Resolve(module, return_address).lines.back().function);
    }
    return entry->second;
  }

 private:
  Symbolizer *symbolizer_;
  std::map<std::pair<size_t, uint64_t>, bool> known_;
};

std::string SiteName(Symbolizer *symbolizer, const Site &site) {
  if (site.place != Place::kAddress) {
    return "";
  }
  const size_t index =
      symbolizer->ModuleAt(site.instruction_pointer, site.first_ns);
  const CodePlace code = symbolizer->Resolve(index, site.instruction_pointer);
  if (!code.lines.front().function.empty()) {
    return code.lines.front().function;
  }
  if (index == Symbolizer::kNoModule) {
    return absl::StrCat("0x", absl::Hex(site.instruction_pointer));
  }
  const Module &module = symbolizer->modules()[index];
  return absl::StrCat(module.path.substr(module.path.find_last_of('/') + 1),
                      "+0x",
                      absl::Hex(site.instruction_pointer - module.load_bias));
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
  const StackSlots slots(survey, *source, WrapperTest(&symbolizer),
                         limits.stacks);
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
    result.top_site = SiteName(&symbolizer, slots.sites().front());
    result.top_site_bytes = slots.sites().front().at_peak_bytes;
  }
  return result;
}

}  // namespace viz
