/* A CUDA driver library without a GPU: it writes down who opens it and calls cuInit, in which environment. */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *value(const char *name) {
  const char *text = getenv(name);
  return text ? text : "unset";
}

static void write_down(const char *what) {
  const char *path = getenv("NO_GPU_DRIVER_LOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%d %s %s %s %s\n", (int)getpid(), what, value("CUDA_VISIBLE_DEVICES"), value("CUDA_DEVICE_ORDER"),
          value("TF_GPU_ALLOCATOR"));
  fclose(file);
}

__attribute__((constructor)) static void opened(void) { write_down("opened"); }

int cuInit(unsigned flags) {
  (void)flags;
  write_down("cuInit");
  return 100; /* CUDA_ERROR_NO_DEVICE */
}
