// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// From a log to a page: both passes, names, and the page around it.

#ifndef MY_ALLOC_VIZ_REPORT_H_
#define MY_ALLOC_VIZ_REPORT_H_

#include <string>

#include "viz/event_source.h"
#include "viz/stack_slots.h"
#include "viz/survey.h"
#include "viz/timeline.h"

namespace viz {

struct ReportLimits {
  StackSlotsLimits stacks;
  TimelineLimits timeline;
};

struct ReportResult {
  std::string page;
  std::string error;  // What is wrong with the log; "" if it is whole.
  Totals totals;
  std::string top_site;  // Of bytes at the peak; "" without any.
  uint64_t top_site_bytes = 0;
};

ReportResult MakeReport(EventSource *source, const std::string &log_path,
                        const ReportLimits &limits);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_REPORT_H_
