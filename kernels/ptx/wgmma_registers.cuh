// How wgmma's instructions name the registers of D, eight at a time: in the instruction's text (WGMMA_R0 is registers 0 to 7), and for the compiler.
#pragma once

#define WGMMA_R0_HALF "%0, %1, %2, %3"
#define WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_R0_1 WGMMA_R0 ", " WGMMA_R1
#define WGMMA_R0_3 WGMMA_R0_1 ", " WGMMA_R2 ", " WGMMA_R3
#define WGMMA_R0_5 WGMMA_R0_3 ", " WGMMA_R4 ", " WGMMA_R5
#define WGMMA_R0_7 WGMMA_R0_5 ", " WGMMA_R6 ", " WGMMA_R7
#define WGMMA_R0_9 WGMMA_R0_7 ", " WGMMA_R8 ", " WGMMA_R9
#define WGMMA_R0_11 WGMMA_R0_9 ", " WGMMA_R10 ", " WGMMA_R11
#define WGMMA_R0_13 WGMMA_R0_11 ", " WGMMA_R12 ", " WGMMA_R13
#define WGMMA_R0_15 WGMMA_R0_13 ", " WGMMA_R14 ", " WGMMA_R15

#define WGMMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D8(i) WGMMA_D4(i), WGMMA_D4(i + 4)
#define WGMMA_D16(i) WGMMA_D8(i), WGMMA_D8(i + 8)
