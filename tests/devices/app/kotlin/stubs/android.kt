// What the example takes of Android, by name and type.
package android.content

import java.io.InputStream

abstract class AssetManager {
    abstract fun open(name: String): InputStream
}

abstract class Context {
    abstract val assets: AssetManager
}
