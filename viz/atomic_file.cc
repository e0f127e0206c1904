// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace viz {
namespace {

absl::Status Failure(const char *verb, const std::string &path) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", verb, " ", path, ": ", strerror(errno)));
}

bool WriteAll(int fd, absl::string_view contents) {
  while (!contents.empty()) {
    const ssize_t written = write(fd, contents.data(), contents.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return false;
    }
    contents.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

absl::Status WriteInPlace(const std::string &path, absl::string_view contents) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) {
    return Failure("open", path);
  }
  const bool ok = WriteAll(fd, contents);
  const absl::Status status = ok ? absl::OkStatus() : Failure("write", path);
  close(fd);
  return status;
}

// As the shell would have created it.
mode_t NewFileMode() {
  const mode_t mask = umask(0);
  umask(mask);
  return 0666 & ~mask;
}

std::string FolderOf(const std::string &path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "."
         : slash == 0               ? "/"
                                    : path.substr(0, slash);
}

}  // namespace

absl::Status CheckIsWritable(const std::string &path) {
  struct stat info;
  if (path.empty()) {
    errno = ENOENT;
    return Failure("write", "a file without a name");
  }
  const bool exists = stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    return Failure("write", path);
  }
  if (exists && !S_ISREG(info.st_mode)) {
    return access(path.c_str(), W_OK) == 0 ? absl::OkStatus()
                                           : Failure("open", path);
  }
  if (access((FolderOf(path) + "/").c_str(), W_OK | X_OK) != 0) {
    return Failure("create a file beside", path);
  }
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string &path,
                                 absl::string_view contents) {
  struct stat info;
  const bool exists = stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    return Failure("write", path);
  }
  if (exists && !S_ISREG(info.st_mode)) {
    return WriteInPlace(path, contents);
  }
  std::string temporary = path + ".XXXXXX";
  const int fd = mkostemp(&temporary[0], O_CLOEXEC);
  if (fd < 0) {
    return Failure("create a file beside", path);
  }
  const mode_t mode = exists ? info.st_mode & 07777 : NewFileMode();
  bool ok = WriteAll(fd, contents) && fchmod(fd, mode) == 0;
  absl::Status status = ok ? absl::OkStatus() : Failure("write", path);
  if (close(fd) != 0 && ok) {
    ok = false;
    status = Failure("write", path);
  }
  if (ok && rename(temporary.c_str(), path.c_str()) != 0) {
    ok = false;
    status = Failure("replace", path);
  }
  if (!ok) {
    unlink(temporary.c_str());
  }
  return status;
}

}  // namespace viz
