// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/coldkv.h"

int main() {
  coldkv_slots slots = {};
  coldkv_status status = {};
  coldkv_close(nullptr);
  return coldkv_version()[0] == COLDKV_VERSION[0] && slots.k == 0 && status.tokens == 0 ? 0 : 1;
}
