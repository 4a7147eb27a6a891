/* A libnvidia-ml.so.1 that does what the file in $RMBGD_FAKE_NVML says at each call: a temperature; "hang"; or "error N",
   where N is a code of nvmlReturn_t. No file: the driver is gone (NVML_ERROR_DRIVER_NOT_LOADED). Only what is asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, TIMEOUT = 10 };

static int told(unsigned *temperature) {
    char text[64] = "";
    for (;;) {
        FILE *file = fopen(getenv("RMBGD_FAKE_NVML"), "r");
        if (file == NULL) return DRIVER_NOT_LOADED;
        if (fgets(text, sizeof text, file) == NULL) text[0] = 0;
        fclose(file);
        if (strncmp(text, "hang", 4) != 0) break;
        usleep(10000);
    }
    if (strncmp(text, "error ", 6) == 0) return atoi(text + 6);
    if (temperature != NULL) *temperature = (unsigned)atoi(text);
    return SUCCESS;
}

int nvmlInit_v2(void) { return told(NULL); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return told(NULL); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) {
    return code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "what the file says";
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = device; return index == 0 ? told(NULL) : 6; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *found) { (void)device; (void)sensor; return told(found); }
int nvmlDeviceGetPowerUsage(void *device, unsigned *found) { (void)device; *found = 99500; return told(NULL); }
int nvmlEventSetCreate(void **set) { *set = set; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long kinds, void *set) { (void)device; (void)kinds; (void)set; return SUCCESS; }
int nvmlEventSetWait_v2(void *set, void *event, unsigned patience) { (void)set; (void)event; (void)patience; return TIMEOUT; }
