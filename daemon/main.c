// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdlib.h>

#include "daemon/log.h"
#include "daemon/server.h"

int main(int argc, char **argv) {
  static struct options options;
  struct error error = {0};
  int result = options_read(&options, argc, argv, &error);
  if (result > 0)
    return EXIT_SUCCESS;
  if (!result)
    result = server_run(&options, &error);
  if (!result)
    return EXIT_SUCCESS;
  log_line("%s", error.text);
  return error.code == ERR_ARGUMENT ? 2 : EXIT_FAILURE;
}
