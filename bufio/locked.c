// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/locked.h"

#include "bufio/fork_guard.h"
#include "bufio/lock_guard.h"

static void locked_in_child(bufio_fork_node_t *node) {
  bufio_locked_writer_t *locked =
      (bufio_locked_writer_t *)((unsigned char *)node -
                                offsetof(bufio_locked_writer_t, fork_node));
  // Whoever held it is not in the child.
  pthread_mutex_init(&locked->lock, NULL);
}

static int start(bufio_locked_writer_t *locked) {
  pthread_mutex_init(&locked->lock, NULL);
  locked->fork_node.in_child = NULL;
  int status = bufio_fork_guard_add(&locked->fork_node, locked_in_child);
  if (status < 0) {
    bufio_writer_close(&locked->writer);
  }
  return status;
}

int bufio_locked_writer_open(bufio_locked_writer_t *locked, const char *path,
                             const bufio_writer_options_t *options) {
  int status = bufio_writer_open(&locked->writer, path, options);
  return status < 0 ? status : start(locked);
}

int bufio_locked_writer_attach(bufio_locked_writer_t *locked, int descriptor,
                               const bufio_writer_options_t *options) {
  int status = bufio_writer_attach(&locked->writer, descriptor, options);
  return status < 0 ? status : start(locked);
}

int bufio_locked_writer_close(bufio_locked_writer_t *locked) {
  if (locked == NULL) {
    return 0;
  }
  bufio_fork_guard_remove(&locked->fork_node);
  return bufio_writer_close(&locked->writer);
}

bufio_writer_t *bufio_locked_writer_acquire(bufio_locked_writer_t *locked) {
  int cancel_state = bufio_lock(&locked->lock);
  locked->cancel_state = cancel_state;
  return &locked->writer;
}

void bufio_locked_writer_release(bufio_locked_writer_t *locked) {
  int cancel_state = locked->cancel_state;
  bufio_unlock(&locked->lock, cancel_state);
}

int bufio_locked_writer_write(bufio_locked_writer_t *locked, const void *bytes,
                              size_t len) {
  int cancel_state = bufio_lock(&locked->lock);
  int status = bufio_writer_write(&locked->writer, bytes, len);
  bufio_unlock(&locked->lock, cancel_state);
  return status;
}

int bufio_locked_writer_printf(bufio_locked_writer_t *locked,
                               const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int cancel_state = bufio_lock(&locked->lock);
  int status = bufio_writer_vprintf(&locked->writer, format, arguments);
  bufio_unlock(&locked->lock, cancel_state);
  va_end(arguments);
  return status;
}

int bufio_locked_writer_flush(bufio_locked_writer_t *locked) {
  int cancel_state = bufio_lock(&locked->lock);
  int status = bufio_writer_flush(&locked->writer);
  bufio_unlock(&locked->lock, cancel_state);
  return status;
}

int bufio_locked_writer_sync(bufio_locked_writer_t *locked) {
  int cancel_state = bufio_lock(&locked->lock);
  int status = bufio_writer_sync(&locked->writer);
  bufio_unlock(&locked->lock, cancel_state);
  return status;
}

int bufio_locked_writer_resume(bufio_locked_writer_t *locked) {
  int cancel_state = bufio_lock(&locked->lock);
  int status = bufio_writer_resume(&locked->writer);
  bufio_unlock(&locked->lock, cancel_state);
  return status;
}
