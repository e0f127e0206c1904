// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a page carries: all that both passes found out, packed. docs/viz.md
// lists the columns; page_data.js reads them.
//
//   u32  length of the deflated head, little-endian
//   ...  the head: JSON, deflated; it lists the columns
//   ...  the columns (column.h), each deflated, one after the other

#ifndef MY_ALLOC_VIZ_REPORT_DATA_H_
#define MY_ALLOC_VIZ_REPORT_DATA_H_

#include <string>
#include <vector>

#include "leakcheck/heaplog.h"
#include "viz/event_source.h"
#include "viz/stack_slots.h"
#include "viz/survey.h"
#include "viz/symbolizer.h"
#include "viz/timeline.h"

namespace viz {

struct ReportInputs {
  std::string log_path;
  std::string error;  // Why the log is not whole; "" if it is.
  ProcessInfo process;
  std::vector<heaplog_thread_t> threads;
  const Survey *survey = nullptr;
  const StackSlots *slots = nullptr;
  const Timeline *timeline = nullptr;
  Symbolizer *symbolizer = nullptr;
};

std::string PackReport(const ReportInputs &inputs);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_REPORT_DATA_H_
