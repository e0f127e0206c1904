// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Handlers of the signals that kill. Internal.

#ifndef MY_ALLOC_BUFIO_EXIT_SIGNAL_H_
#define MY_ALLOC_BUFIO_EXIT_SIGNAL_H_

#include <signal.h>

#ifdef __cplusplus
extern "C" {
#endif

// Installs them where the default action is in force; once.
void bufio_exit_signals_install(void);

// For the handler of a signal whose default action is to kill: writes what is
// committed and has that action follow. Returns if the signal kills when the
// handler returns, or if the kernel ignores it: then the handler stays, and all
// goes on as before. Async-signal-safe.
void bufio_exit_die(int number, const siginfo_t *info);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_EXIT_SIGNAL_H_
