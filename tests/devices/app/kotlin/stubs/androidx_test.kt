// androidx.test.ext:junit and androidx.test:runner.
package androidx.test.platform.app

import android.content.Context

abstract class Instrumentation {
    abstract val context: Context
    abstract val targetContext: Context
}

object InstrumentationRegistry {
    fun getInstrumentation(): Instrumentation = TODO()
}
